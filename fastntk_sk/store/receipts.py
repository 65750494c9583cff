"""What a deletion did, with what, and how exactly: evidence of what was run, not proof of absence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..exceptions import ReceiptError, StateFormatError
from ..publishing import files
from ..publishing.config import Checksum, Count, Exactness, RowCount

Measured = Annotated[float, Meta(ge=0)]


class Receipt(Struct):
    """What every receipt holds; others of its keys say where it was made."""

    time: str
    n_rows: RowCount
    n_samples_learned: Count
    exactness: Exactness
    residual: Measured
    drift: Measured
    position_gap: Measured
    rounding: Measured
    seen_by: list[str]
    searched_by: list[str]
    anchor: Literal["pretrained", "finetuned"]
    seconds: Measured
    request_ids: list[str]
    n_copies_left: Count
    kept_features: bool
    chain: str
    previous: str
    checksum: Checksum


def make_receipt(
    *,
    chain: str,
    previous: str,
    n_rows: int,
    n_samples_learned: int,
    exactness: dict[str, Any],
    residual: float,
    drift: float,
    position_gap: float,
    rounding: float,
    seconds: float,
    environment: dict[str, Any],
    n_left: int | None = None,
    n_copies_left: int,
    request_ids: Sequence[str],
    kept_features: bool,
    anchor: str,
    seen_by: Sequence[str],
    searched_by: Sequence[str],
) -> dict[str, Any]:
    """Return the receipt of one deletion in plain Python values, with its "checksum".

    Parameters
    ----------
    chain, previous : str
        Name of this site's chain, and the checksum of the receipt before it there, or "".

    n_rows, n_samples_learned : int
        Rows that were removed, and those that the model rests on afterwards.

    exactness, residual, drift, position_gap, rounding, anchor, seen_by, searched_by
        See :func:`fastntk_sk.publishing.exactness.exactness`.

    seconds : float

    environment : dict
        Of the state.

    n_left : int, default=None
        For a request by sample ids: learned rows that are left under them.

    n_copies_left : int
        Learned copies of what was forgotten.

    request_ids : sequence of str
        The caller's.

    kept_features : bool
        Whether features were subtracted that had been kept, and not computed again.
    """
    left: dict[str, Any] = {} if n_left is None else {"n_rows_left_under_sample_ids": n_left}
    return files.with_checksum(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "n_rows": n_rows,
            "n_samples_learned": n_samples_learned,
            "method": "downdate of the statistics and one solve",
            "request_ids": list(request_ids),
            "n_copies_left": n_copies_left,
            "kept_features": kept_features,
            "exactness": exactness,
            "residual": residual,
            "drift": drift,
            "position_gap": position_gap,
            "rounding": rounding,
            "seen_by": list(seen_by),
            "searched_by": list(searched_by),
            "anchor": anchor,
            "seconds": seconds,
            **environment,
            **left,
            "chain": chain,
            "previous": previous,
        }
    )


def senses(receipts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the exactness of all deletions together, for the public: it names nobody's steps."""
    found = [receipt["exactness"] for receipt in receipts]
    reasons = dict.fromkeys(reason for one in found for reason in one["reasons"])
    return {"exact": all(one["exact"] for one in found), "reasons": list(reasons)}


def chain_heads(receipts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the checksum of the last receipt of each chain."""
    return list(_heads(receipts).values())


def head_of(receipts: Iterable[Mapping[str, Any]], chain: str) -> str:
    """Return the checksum of the last receipt of one chain, or "" if it has none yet."""
    return _heads(receipts).get(chain, "")


def _heads(receipts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {receipt["chain"]: receipt["checksum"] for receipt in receipts}


def export_receipts(receipts: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write receipts as JSON lines; see the classifier."""
    path = Path(path).absolute()
    files.replace(path.parent, path.name, lines(*receipts))


def lines(*documents: Mapping[str, Any]) -> bytes:
    """Return JSON lines."""
    return b"".join(files.canonical(document) + b"\n" for document in documents)


def verify_receipts(path: str | os.PathLike[str], heads: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Check that exported receipts are whole and in order.

    Each receipt holds the checksum of the one before it: a line that was changed, inserted, left out or
    moved is noticed. Lines that were cut off at the end are noticed only through `heads`. A chain is
    evidence of what was run by somebody who is honest, not a proof that nothing was kept: who holds
    the state can write another chain.

    Parameters
    ----------
    path : str or path-like
        As :meth:`FastNTKClassifier.export_receipts` wrote it.

    heads : iterable of str, default=()
        Checksums that must be among the receipts: those under "receipts" in the `config.json` of a
        published adapter.

    Returns
    -------
    receipts : list of dict

    Raises
    ------
    ReceiptError
        If a line does not fit; the message names it.

    StateFormatError
        If there is no such file.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier, verify_receipts
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y).unlearn(X[:5]).unlearn(X[5:7])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     clf.export_receipts(f"{folder}/receipts.jsonl")
    ...     [receipt["n_rows"] for receipt in verify_receipts(f"{folder}/receipts.jsonl")]
    [5, 2]
    """
    path = Path(path).absolute()
    receipts = parse_receipts(files.read(path.parent, path.name).splitlines(), path.name)
    wanted = {heads} if isinstance(heads, str) else set(heads)
    missing = sorted(wanted - {receipt["checksum"] for receipt in receipts})
    if missing:
        raise ReceiptError(
            f"{path.name} lacks the receipts {missing}, which were published. It was cut off, or "
            "belongs to another model."
        )
    return receipts


def parse_receipts(documents: Iterable[bytes], name: str) -> list[dict[str, Any]]:
    """Return receipts that are whole and follow one another, from their JSON; see `verify_receipts`."""
    receipts: list[dict[str, Any]] = []
    last: dict[str, str] = {}
    for i, line in enumerate(documents, 1):
        try:
            receipt = files.parse_json(line, f"Receipt {i}")
            files.check_checksum(receipt, f"Receipt {i}")
            msgspec.convert(receipt, Receipt)
        except (StateFormatError, msgspec.ValidationError) as error:
            raise ReceiptError(f"{name} is not what was written, in receipt {i}: {error}") from error
        if receipt["previous"] != last.get(receipt["chain"], ""):
            raise ReceiptError(
                f"Receipt {i} of {name} does not follow the one before it in its chain: receipts "
                "were left out, inserted or moved. Ask for the file as it was exported."
            )
        last[receipt["chain"]] = receipt["checksum"]
        receipts.append(receipt)
    return receipts
