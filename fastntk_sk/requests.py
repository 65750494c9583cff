"""Requests to be forgotten, beside the state that is to forget."""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from .backbones.inputs import Rows, content
from .classifier import FastNTKClassifier
from .exceptions import RequestError, StateFormatError
from .publishing.config import Count
from .publishing.exactness import exactness_text
from .store import persistence
from .store.database import Database, connect
from .store.ledger import Match
from .store.receipts import parse_receipts
from .validation import check_choice, check_ids, check_text
from .wording import counted

State = Literal["open", "found", "done", "refused", "nothing held"]
OPEN = ("open", "found")
_COLUMNS = ("request_id", "subject", "received", "note", "id", "path")


@dataclass(frozen=True)
class Request:
    """One request to be forgotten.

    Parameters
    ----------
    request_id : str
        An opaque name, which receipts show.

    state : {"open", "found", "done", "refused", "nothing held"}
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
        Checksum of the receipt of the last deletion for it, or empty.

    n_rows, n_unknown : int, default=0
        Rows that were forgotten for it, and what it named that was not learned.

    reason : str, default=""
        Why it was refused, which its letters say; it is kept.

    Attributes
    ----------
    is_overdue : bool

    Examples
    --------
    >>> from fastntk_sk import Request
    >>> dates = "2020-01-01", "2020-01-31", ""
    >>> Request("case 1", "open", "Anna", *dates, "", ("anna",), (), "").is_overdue
    True
    """

    request_id: str
    state: State
    subject: str
    received: str
    due: str
    closed: str
    note: str
    names: tuple[str | int, ...]
    files: tuple[str, ...]
    receipt: str
    n_rows: Count = 0
    n_unknown: Count = 0
    reason: str = ""

    @property
    def is_overdue(self) -> bool:
        """Whether it is open after its due date."""
        return self.state in OPEN and date.fromisoformat(self.due) < date.today()

    def closed_as(self, state: State) -> Request:
        """Return what is left of it when it is closed."""
        erased: dict[str, Any] = {"subject": "", "note": "", "names": (), "files": ()}
        return replace(self, state=state, closed=date.today().isoformat(), **erased)

    def after(self, rows: Iterable[dict[str, Any]], receipt: str) -> Request:
        """Return it after a deletion, without what was served; it is done where nothing is left."""
        rows = [row for row in rows if row["request_id"] == self.request_id]
        served = {row["item"] for row in rows if row["result"] == "found"}
        n_unknown = sum(row["result"] in ("unknown", "elsewhere") for row in rows)
        changed = replace(
            self,
            names=tuple(name for name in self.names if name not in served),
            files=tuple(file for file in self.files if file not in served),
            n_rows=self.n_rows + sum(row["n_rows"] for row in rows),
            n_unknown=n_unknown,
            receipt=receipt if served else self.receipt,
        )
        waits = any(row["result"] in ("ambiguous", "no picture") for row in rows)
        return changed.closed_as("done") if changed.n_rows and not waits else changed


class Requests:
    """The requests in the file of a state: added, listed, looked up, and run as one deletion.

    To add or to list requests reads the table alone, and no model.

    Parameters
    ----------
    path : str or path-like
        A file of :meth:`FastNTKClassifier.save`.

    key : bytes of length 32 or str, default=None
        Of an encrypted file.

    verbose : int, default=0
        1 shows a progress bar while rows are forgotten.

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

    def __init__(
        self, path: str | os.PathLike[str], *, key: bytes | str | None = None, verbose: int = 0
    ) -> None:
        self.path, self.key, self.verbose = Path(path), key, verbose

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
        request = _request(subject, sample_ids, files, note, received, days, request_id)
        self._append([request])
        return request.request_id

    def add_csv(self, path: str | os.PathLike[str]) -> list[str]:
        """Add the requests of a CSV file, and return their ids.

        Its columns are "id" (a sample id) or "path" (relative to the file), and perhaps "request_id",
        "subject", "received" and "note". Lines of one request_id, or else of one subject, are one
        request.
        """
        path = Path(path)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                lines = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise RequestError(
                f"Expected a CSV file in UTF-8, got {path.name}, which is another: {error}."
            ) from error
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
        for name, group in groups.items():
            for column in ("subject", "received", "note"):
                if len({line.get(column) for line in group}) > 1:
                    raise RequestError(
                        f"Expected one {column} of each request in {path.name}, got several of "
                        f"{name!r}. Give all of its lines the same one."
                    )
        added = [
            _request(
                group[0].get("subject") or "",
                [line["id"] for line in group if line.get("id")],
                [path.parent / line["path"] for line in group if line.get("path")],
                group[0].get("note") or "",
                group[0].get("received") or None,
                request_id=group[0].get("request_id") or None,
            )
            for group in groups.values()
        ]
        self._append(added)
        return [request.request_id for request in added]

    def _append(self, added: list[Request]) -> None:
        """Add requests, all or none."""
        with connect(self.path, self.key, write=True) as db:
            there = [request.request_id for _, request in _read(db)]
            ids = Counter(there + [request.request_id for request in added])
            twice = sorted(one for one, n in ids.items() if n > 1)
            if twice:
                raise RequestError(f"There are requests {twice} already. Choose other ids.")
            db.append("requests", [_row(request) for request in added])

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
            were not kept), "n_rows", "copies_left", and "seconds": an estimate of the passes for it;
            the solve, for all of them together, comes on top.
        """
        with connect(self.path, self.key) as db:
            asked = _asked(db, request_ids)
        clf = FastNTKClassifier.load(self.path, key=self.key, **source)
        *_, rows = _look_up(clf, asked)
        found = {row["request_id"] for row in rows if row["n_rows"]}
        with connect(
            self.path, self.key, write=True
        ) as db:  # another may have run or closed some meanwhile
            same = [request for _, request in _read(db) if request in asked]
            _change(db, [replace(one, state="found") for one in same if one.request_id in found])
        return rows

    def run(self, *request_ids: str, **source: Any) -> list[dict[str, Any]]:
        """Forget what open requests name, or some of them, as one deletion with one receipt.

        What is not found blocks nothing. What was forgotten is taken from its request, which is done
        when nothing is left that is ambiguous or without picture. A request of which nothing was ever
        found stays open: see :meth:`close`.

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
            pictures, match, names, rows = _look_up(clf, asked)
            if not match.removals:
                return rows
            served = dict.fromkeys(row["request_id"] for row in rows if row["n_rows"])
            ids, verbose = names if pictures is None else None, clf.verbose
            clf.set_params(verbose=self.verbose)
            clf._forget(sample_ids=ids, request_id=list(served), matched=(pictures, match))
            clf.set_params(verbose=verbose)
            receipt = clf.receipts_[-1]["checksum"]
            _change(db, [one.after(rows, receipt) for one in asked if one.request_id in served])
        return [row | {"result": "forgotten"} if row["result"] == "found" else row for row in rows]

    def close(
        self,
        request_id: str,
        state: Literal["refused", "nothing held"] = "refused",
        *,
        reason: str = "",
    ) -> None:
        """Close a request without a deletion; its subject, note and names are erased.

        Parameters
        ----------
        request_id : str

        state : {"refused", "nothing held"}, default="refused"
            "nothing held" where nothing that it names was learned, or others have had it forgotten.

        reason : str, default=""
            Why it is refused: a sentence for its letters, without anything about the person, since it
            is kept.

        Raises
        ------
        RequestError
            If no such request is open, or the reason cannot be kept.
        """
        check_choice("state", state, ("refused", "nothing held"))
        try:
            check_text("reason", reason)
        except ValueError as error:
            raise RequestError(f"A request that cannot be closed: {error}") from error
        with connect(self.path, self.key, write=True) as db:
            (request,) = _asked(db, (request_id,))
            _change(db, [replace(request.closed_as(state), reason=reason)])

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
        check_choice("reader", reader, ("person", "auditor"))
        with connect(self.path, self.key) as db:
            found = [request for _, request in _read(db) if request.request_id == request_id]
            receipts = parse_receipts((r for _, (r,) in db.rows("receipts")), self.path.name)
        if not found:
            raise RequestError(f"There is no request {request_id!r}. List them: Requests(path).all().")
        (request,) = found
        if request.state in OPEN:
            raise RequestError(
                f"Expected a request that is closed, got {request_id!r}, which is open. Run it, or "
                "close it where nothing of it is held."
            )
        receipt = next((r for r in receipts if r["checksum"] == request.receipt), None)
        return (_to_person if reader == "person" else _to_auditor)(request, receipt)


def _to_person(request: Request, receipt: dict[str, Any] | None) -> str:
    """Return what a person is told; each sentence is true of the receipt."""
    lines = [f"Your request {request.request_id}, received on {request.received}, was answered on "
             f"{request.closed}."]  # fmt: skip
    if request.state == "refused":
        lines.append(f"It was refused: {request.reason}" if request.reason else "It was refused.")
    elif receipt is None:
        lines.append("Nothing that you named was held.")
    else:
        lines.append(
            f"{counted(request.n_rows, 'learned row')} that you named "
            f"{'was' if request.n_rows == 1 else 'were'} removed from the model "
            f"({exactness_text(receipt['exactness'])})."
        )
        if request.n_unknown:
            lines.append(f"Of what you named, {counted(request.n_unknown, 'item')} "
                         f"{'was' if request.n_unknown == 1 else 'were'} not held.")  # fmt: skip
        if receipt["n_copies_left"]:
            lines.append("Copies of some of the pictures are still learned under other names.")
        if receipt["anchor"] != "pretrained":
            lines.append("The network was trained on them before, which the removal does not undo.")
        lines.append(
            "This does not cover backups, which expire by themselves, versions of the model that others "
            "have downloaded before, and the pictures themselves where they are kept elsewhere."
        )
    return "\n\n".join(lines) + "\n"


def _to_auditor(request: Request, receipt: dict[str, Any] | None) -> str:
    """Return what an auditor is told."""
    cells = {
        "Request": request.request_id,
        "State": request.state,
        "Received, due, closed": f"{request.received}, {request.due}, {request.closed}",
        "Rows removed for it": f"{request.n_rows:,}",
        "Named and not held": f"{request.n_unknown:,}",
    }
    if request.reason:
        cells["Reason"] = request.reason
    if receipt is not None:
        served = counted(len(receipt["request_ids"]), "request")
        cells |= {
            "Carried out": receipt["time"],
            "Rows of the deletion": f"{receipt['n_rows']:,}, for {served}",
            "Rows left, copies left": f"{receipt['n_samples_learned']:,}, {receipt['n_copies_left']:,}",
            "Exactness": exactness_text(receipt["exactness"]),
            "Drift, residual, rounding": ", ".join(
                f"{receipt[name]:.3g}" for name in ("drift", "residual", "rounding")
            ),
            "Versions": ", ".join(f"{name} {value}" for name, value in receipt["versions"].items()),
            "Receipt": receipt["checksum"],
            "Receipt before": receipt["previous"] or "none",
            "Chain": receipt["chain"],
        }
    lines = [f"{name:<28}{value}" for name, value in cells.items()]
    return "\n".join(lines) + (
        "\n\nA receipt is evidence of what was run. It does not cover backups, free blocks of disks, "
        "versions that\nwere published before, and what the backbone has learned elsewhere.\n"
    )


def _request(
    subject: str,
    sample_ids: Iterable[str | int],
    files: Iterable[str | os.PathLike[str]],
    note: str,
    received: str | None,
    days: int = 30,
    request_id: str | None = None,
) -> Request:
    """Return a request that was checked."""
    if isinstance(sample_ids, str) or isinstance(files, (str, os.PathLike)):
        raise RequestError("Expected lists of sample ids and files, got a single one. Put it in a list.")
    try:
        names = tuple(one for one in check_ids(list(sample_ids)) or () if one is not None)
        paths = tuple(str(Path(file).absolute()) for file in files)
        drawn = secrets.token_hex(8) if request_id is None else request_id
        checked = {"request_id": drawn, "subject": subject, "note": note}
        for argument, text in [*checked.items(), *(("files", path) for path in paths)]:
            check_text(argument, text)
        begin = date.today() if received is None else date.fromisoformat(received)
        due = begin + timedelta(days)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"A request that cannot be kept: {error}") from error
    if not names and not paths:
        raise RequestError("Expected sample_ids or files of the request, got neither.")
    if not drawn:
        raise RequestError("Expected a name of the request, got ''. Leave request_id out to draw one.")
    dates = begin.isoformat(), due.isoformat(), ""
    return Request(drawn, "open", subject, *dates, note, names, paths, "")


def _look_up(
    clf: FastNTKClassifier, asked: Iterable[Request]
) -> tuple[Rows | None, Match, list[str | int], list[dict[str, Any]]]:
    """Return pictures, what they and sample ids match, those ids, and a row for each that is named."""
    ledger, asked = clf._held.ledger, list(asked)
    files = [(request.request_id, file) for request in asked for file in request.files]
    read = {file: _content(clf, file) for _, file in files}
    there = [(request_id, file) for request_id, file in files if read[file] is not None]
    names = [(request.request_id, name) for request in asked for name in request.names]
    match = ledger.find([read[file] or b"" for _, file in there], copies="all")
    meant = ledger.known_ids([name for _, name in names])
    by_name = ledger.find_ids([ids[0] if len(ids) == 1 else None for ids in meant])
    lacking = {
        removal.row
        for removal, row in zip(by_name.removals, ledger.features(by_name.removals), strict=True)
        if row is None  # of a state, or of a part of one, that keeps no features
    }
    results = [
        "ambiguous" if len(ids) > 1 else "no picture" if row in lacking else result
        for row, (ids, result) in enumerate(zip(meant, by_name.results, strict=True))
    ]
    kept = [removal for removal in by_name.removals if removal.row not in lacking]
    match = match.joined(Match(kept, results, by_name.known))
    going, passes = Counter[int](), Counter[int]()
    for removal, row in zip(match.removals, ledger.features(match.removals), strict=True):
        going[removal.row] += 1
        passes[removal.row] += row is None
    per_row = clf._held.state.seconds_per_row
    after = ledger.without(match.removals)
    rows = [
        _told(*item, result, going[i], after.n_copies(known) if going[i] else 0, passes[i] * per_row)
        for i, (item, result, known) in enumerate(
            zip(there + names, match.results, match.known, strict=True)
        )
    ]
    rows += [_told(*item, "no picture") for item in files if read[item[1]] is None]
    wanted = [ids[0] for ids, result in zip(meant, results, strict=True) if result == "found"]
    pictures = clf._rows([file for _, file in there]) if there else None
    return pictures, match, wanted, rows


def _content(clf: FastNTKClassifier, file: str) -> bytes | None:
    """Return the content of a picture, or None where it is missing or cannot be read."""
    try:
        return content(clf._rows([file])[0])
    except (ValueError, OSError):
        return None


def _told(
    request_id: str,
    item: str | int,
    result: str,
    n_rows: int = 0,
    copies_left: int = 0,
    seconds: float = 0.0,
) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "item": item,
        "result": result,
        "n_rows": n_rows,
        "copies_left": copies_left,
        "seconds": seconds,
    }


def _asked(db: Database, request_ids: tuple[str, ...]) -> list[Request]:
    """Return the open requests, or some of them."""
    there = {request.request_id: request for _, request in _read(db) if request.state in OPEN}
    missing = sorted(set(request_ids) - there.keys())
    if missing:
        raise RequestError(f"There are no open requests {missing}. List them: Requests(path).all().")
    return [there[one] for one in dict.fromkeys(request_ids)] if request_ids else [*there.values()]


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


def _row(request: Request) -> tuple[Any, ...]:
    values = vars(request) | {"names": json.dumps(request.names), "files": json.dumps(request.files)}
    return tuple(values.values())


def _change(db: Database, changed: list[Request]) -> None:
    """Put other values in the place of requests, of whose old ones nothing is left."""
    ids = {request.request_id for request in changed}
    db.blank("requests", [number for number, request in _read(db) if request.request_id in ids])
    db.append("requests", [_row(request) for request in changed])
