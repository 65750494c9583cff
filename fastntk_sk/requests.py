"""Requests to be forgotten, beside the state that is to forget."""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from .classifier import FastNTKClassifier
from .exceptions import RequestError, StateFormatError
from .publishing.exactness import exactness_text
from .store import persistence
from .store.database import Database, connect
from .store.ledger import Match
from .store.receipts import parse_receipts

OPEN = ("open", "found")
_COLUMNS = ("request_id", "subject", "received", "note", "id", "path")


@dataclass(frozen=True)
class Request:
    """One request to be forgotten.

    Parameters
    ----------
    request_id : str
        An opaque name, which receipts show.

    state : {"open", "found", "done", "refused"}
        "found": rows were found that it names.

    subject, note : str
        Who asks, and what else is to be known; erased when the request is done or refused.

    received, due, closed : str
        ISO dates; `closed` is empty until it is done or refused.

    names : tuple of str or int
        Sample ids to be forgotten; erased with the subject.

    files : tuple of str
        Pictures to be forgotten; erased with the subject.

    receipt : str
        Checksum of the receipt of the deletion, or empty.

    Examples
    --------
    >>> from fastntk_sk import Request
    >>> dates = "2020-01-01", "2020-01-31", ""
    >>> Request("case 1", "open", "Anna", *dates, "", ("anna",), (), "").is_overdue
    True
    """

    request_id: str
    state: Literal["open", "found", "done", "refused"]
    subject: str
    received: str
    due: str
    closed: str
    note: str
    names: tuple[str | int, ...]
    files: tuple[str, ...]
    receipt: str

    @property
    def is_overdue(self) -> bool:
        """Whether it is open after its due date."""
        return self.state in OPEN and date.fromisoformat(self.due) < datetime.now(UTC).date()

    def closed_as(self, state: Literal["done", "refused"], receipt: str = "") -> Request:
        """Return what is left of it when it is done or refused."""
        today = datetime.now(UTC).date().isoformat()
        return Request(self.request_id, state, "", self.received, self.due, today, "", (), (), receipt)


class Requests:
    """The requests in the file of a state: added, listed, looked up, and run as one deletion.

    To add or to list requests reads the table alone, and no model.

    Parameters
    ----------
    path : str or path-like
        A file of :meth:`FastNTKClassifier.save`.

    key : bytes of length 32 or str, default=None
        Of an encrypted file.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier, Requests
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(keep="features", random_state=0)
    >>> clf = clf.fit(X, y, sample_ids=[f"plant {i // 3}" for i in range(150)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     clf.save(f"{folder}/iris.fastntk")
    ...     requests = Requests(f"{folder}/iris.fastntk")
    ...     case = requests.add("Iris", sample_ids=["plant 7"], request_id="case 1")
    ...     rows = requests.run()
    ...     [(row["item"], row["result"], row["n_rows"]) for row in rows]
    [('plant 7', 'forgotten', 3)]
    """

    def __init__(self, path: str | os.PathLike[str], *, key: bytes | str | None = None) -> None:
        self.path, self.key = Path(path), key

    def add(
        self,
        subject: str = "",
        *,
        sample_ids: Iterable[str | int] = (),
        files: Iterable[str | os.PathLike[str]] = (),
        note: str = "",
        received: str | None = None,
        days: int = 30,
        request_id: str | None = None,
    ) -> str:
        """Add a request and return its id.

        Parameters
        ----------
        subject : str, default=""
            Who asks.

        sample_ids : iterable of str or int, default=()
            Forget every row that was learned under these ids; needs keep="features".

        files : iterable of str or path-like, default=()
            Forget these pictures.

        note : str, default=""

        received : str, default=None
            ISO date; today by default.

        days : int, default=30
            Days until it is due.

        request_id : str, default=None
            An opaque name that may be shown to an auditor; drawn by default.

        Returns
        -------
        request_id : str

        Raises
        ------
        RequestError
            If it names nothing, the id is taken, or the date is none.
        """
        names = tuple(sample_ids)
        paths = tuple(str(Path(file).absolute()) for file in files)
        request_id = secrets.token_hex(8) if request_id is None else str(request_id)
        if not names and not paths:
            raise RequestError("Expected sample_ids or files of the request, got neither.")
        try:
            begin = date.today() if received is None else date.fromisoformat(received)
        except ValueError as error:
            raise RequestError(f"Expected an ISO date (2026-11-29), got {received!r}.") from error
        due = begin + timedelta(days)
        request = Request(request_id, "open", subject, f"{begin}", f"{due}", "", note, names, paths, "")
        with connect(self.path, self.key, write=True) as db:
            if any(known.request_id == request_id for _, known in _read(db)):
                raise RequestError(f"There is a request {request_id!r} already. Choose another id.")
            db.append("requests", [_row(request)])
        return request_id

    def add_csv(self, path: str | os.PathLike[str]) -> list[str]:
        """Add the requests of a CSV file, and return their ids.

        Its columns are "id" (a sample id) or "path" (relative to the file), and perhaps "request_id",
        "subject", "received" and "note". Lines of one request_id, or else of one subject, are one
        request.
        """
        path = Path(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
        unknown = sorted({str(name) for line in lines for name in line} - set(_COLUMNS))
        if unknown or not lines:
            raise RequestError(
                f"Expected lines with columns among {', '.join(_COLUMNS)} in {path.name}, got "
                f"{', '.join(unknown) or 'no line'}."
            )
        groups: dict[str, list[dict[str, str]]] = {}
        for i, line in enumerate(lines):
            groups.setdefault(line.get("request_id") or line.get("subject") or f"line {i}", []).append(
                line
            )
        return [
            self.add(
                group[0].get("subject") or "",
                sample_ids=[line["id"] for line in group if line.get("id")],
                files=[path.parent / line["path"] for line in group if line.get("path")],
                note=group[0].get("note") or "",
                received=group[0].get("received") or None,
                request_id=group[0].get("request_id") or None,
            )
            for group in groups.values()
        ]

    def all(self) -> list[Request]:
        """Return all requests, those that are due first before the others."""
        with connect(self.path, self.key) as db:
            found = [request for _, request in _read(db)]
        return sorted(found, key=lambda request: (request.state not in OPEN, request.due))

    def show(self, *request_ids: str, **source: Any) -> list[dict[str, Any]]:
        """Return what would become of open requests, or of some; nothing is forgotten.

        Parameters
        ----------
        *request_ids : str
            All that are open, by default.

        **source
            `backbone` and `device`, as of :meth:`FastNTKClassifier.load`.

        Returns
        -------
        rows : list of dict
            For each sample id and file that is named: "request_id", "item", "result" ("found",
            "unknown", "elsewhere", "ambiguous", or "no picture" where a file is missing or features
            were not kept), "n_rows" and "copies_left".
        """
        with connect(self.path, self.key) as db:
            asked = _asked(db, request_ids)
        clf = FastNTKClassifier.load(self.path, key=self.key, **source)
        _, rows = _look_up(clf, asked)
        found = {row["request_id"] for row in rows if row["n_rows"]}
        with connect(self.path, self.key, write=True) as db:
            _change(
                db, {r.request_id: replace(r, state="found") for r in asked if r.request_id in found}
            )
        return rows

    def run(self, *request_ids: str, **source: Any) -> list[dict[str, Any]]:
        """Forget what open requests name, or some of them, as one deletion with one receipt.

        What is not found blocks nothing. A request of which anything was found, and nothing is ambiguous
        or without picture, is done; the others stay open.

        Parameters
        ----------
        *request_ids, **source
            As of :meth:`show`.

        Returns
        -------
        rows : list of dict
            As of :meth:`show`, with "forgotten" in place of "found".
        """
        with persistence.opened(FastNTKClassifier, self.path, key=self.key, **source) as (clf, db):
            asked = _asked(db, request_ids)
            plan, rows = _look_up(clf, asked)
            if not plan:
                return rows
            done = [request.request_id for request in asked if _is_served(request, rows)]
            clf._forget(**plan, request_id=done)
            receipt = clf.receipts_[-1]["checksum"]
            _change(
                db, {r.request_id: r.closed_as("done", receipt) for r in asked if r.request_id in done}
            )
        return [row | {"result": "forgotten"} if row["result"] == "found" else row for row in rows]

    def refuse(self, request_id: str) -> None:
        """Close a request without a deletion; its subject, note and names are erased."""
        with connect(self.path, self.key, write=True) as db:
            (request,) = _asked(db, (request_id,))
            _change(db, {request_id: request.closed_as("refused")})

    def letter(self, request_id: str, reader: str = "person") -> str:
        """Return a text about a request that is done, for the person or for an auditor.

        Parameters
        ----------
        request_id : str

        reader : {"person", "auditor"}, default="person"

        Returns
        -------
        text : str
        """
        with connect(self.path, self.key) as db:
            found = [request for _, request in _read(db) if request.request_id == request_id]
            receipts = parse_receipts((r for _, (r,) in db.rows("receipts")), self.path.name)
        by_checksum = {receipt["checksum"]: receipt for receipt in receipts}
        if not found or found[0].receipt not in by_checksum:
            raise RequestError(f"Expected a request that is done, got {request_id!r}. Run it first.")
        request, receipt = found[0], by_checksum[found[0].receipt]
        if reader == "person":
            return _PERSON.format(request=request, receipt=receipt, exactness=_in_words(receipt))
        if reader == "auditor":
            versions = ", ".join(f"{name} {value}" for name, value in receipt["versions"].items())
            return _AUDITOR.format(
                request=request, receipt=receipt, exactness=_in_words(receipt), versions=versions
            )
        raise ValueError(f"Expected reader to be 'person' or 'auditor', got {reader!r}.")


_PERSON = """\
Your request {request.request_id}, received on {request.received}, was carried out on {request.closed}.

The pictures that you named were removed from the model: it gives the answers that it would give if it
had never learned them ({exactness}). No copy, number or name of them is left in the file of the model.

This letter does not cover backups of that file, which expire by themselves, versions of the model that
others have downloaded before, and the pictures themselves where they are kept elsewhere.
"""

_AUDITOR = """\
Request            {request.request_id}
Received, due      {request.received}, {request.due}
Carried out        {receipt[time]}
Rows removed       {receipt[n_rows]} in this deletion, which may serve several requests
Rows left          {receipt[n_samples_learned]}
Copies left        {receipt[n_copies_left]}
Exactness          {exactness}
Drift, residual    {receipt[drift]:.3g}, {receipt[residual]:.3g}
Rounding           {receipt[rounding]:.3g}
Method             {receipt[method]}
Versions           {versions}
Receipt            {receipt[checksum]}
Receipt before     {receipt[previous]}
Chain              {receipt[chain]}

The receipt is evidence of what was run. It does not cover backups, free blocks of disks, versions that
were published before, and what the backbone has learned elsewhere.
"""


def _look_up(
    clf: FastNTKClassifier, asked: Iterable[Request]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what to forget, and a row for each file and sample id that requests name."""
    held, ledger, asked = clf._held, clf._held.ledger, list(asked)
    files = [(request.request_id, file) for request in asked for file in request.files]
    there = [(request_id, file) for request_id, file in files if Path(file).is_file()]
    names = [(request.request_id, name) for request in asked for name in request.names]
    paths = [file for _, file in there]
    match = clf._match(held, paths, None, None, "all")[1] if paths else Match([], [])
    meant = [ledger.known_ids(name) for _, name in names]
    by_name = ledger.find_ids([ids[0] if len(ids) == 1 else None for ids in meant])
    results = [
        "ambiguous" if len(ids) > 1 else result
        for ids, result in zip(meant, by_name.results, strict=True)
    ]
    if ledger.features(by_name.removals) is None:  # of a state that keeps none
        by_name = Match([], ["no picture" if result == "found" else result for result in results])
        results = by_name.results
    wanted = [ids[0] for ids, result in zip(meant, results, strict=True) if result == "found"]
    match = match.joined(by_name)
    going = Counter(removal.row for removal in match.removals)
    left = ledger.without(match.removals).copies_left(match.removals)
    rows = [
        _told(*item, result, going[i], left[i])
        for i, (item, result) in enumerate(
            zip(there + names, match.results[: len(there)] + results, strict=True)
        )
    ]
    rows += [_told(*item, "no picture") for item in files if item not in there]
    if not match.removals:
        return {}, rows
    if not paths:
        return {"X": None, "sample_ids": wanted}, rows
    return {"X": paths, "names": wanted, "copies": "all", "on_unknown": "skip"}, rows


def _told(
    request_id: str, item: str | int, result: str, n_rows: int = 0, copies_left: int = 0
) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "item": item,
        "result": result,
        "n_rows": n_rows,
        "copies_left": copies_left,
    }


def _in_words(receipt: dict[str, Any]) -> str:
    return exactness_text(receipt["exactness"])


def _is_served(request: Request, rows: Iterable[dict[str, Any]]) -> bool:
    """Return whether something of a request was found, and nothing is left that might be."""
    results = [row["result"] for row in rows if row["request_id"] == request.request_id]
    return "found" in results and not {"ambiguous", "no picture"} & set(results)


def _asked(db: Database, request_ids: tuple[str, ...]) -> list[Request]:
    """Return the open requests, or some of them."""
    there = {request.request_id: request for _, request in _read(db) if request.state in OPEN}
    missing = sorted(set(request_ids) - there.keys())
    if missing:
        raise RequestError(f"There are no open requests {missing}. List them: Requests(path).all().")
    return [there[one] for one in request_ids] if request_ids else [*there.values()]


def _read(db: Database) -> Iterator[tuple[int, Request]]:
    for number, values in db.rows("requests"):
        document = dict(zip((field.name for field in fields(Request)), values, strict=True))
        try:
            lists = {name: json.loads(document[name]) for name in ("names", "files")}
            request = msgspec.convert(document | lists, Request)
            date.fromisoformat(request.due)
        except (ValueError, msgspec.ValidationError) as error:
            raise StateFormatError(f"Request {number} is not what was written: {error}.") from error
        yield number, request


def _row(request: Request) -> tuple[str, ...]:
    values = vars(request) | {"names": json.dumps(request.names), "files": json.dumps(request.files)}
    return tuple(values.values())


def _change(db: Database, changed: dict[str, Request]) -> None:
    """Put other values in the place of requests, of whose old ones nothing is left."""
    numbers = [number for number, request in _read(db) if request.request_id in changed]
    db.blank("requests", numbers)
    db.append("requests", [_row(request) for request in changed.values()])
