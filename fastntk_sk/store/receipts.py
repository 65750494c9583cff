"""What a deletion did, with what, and how exactly: evidence of what was run, not proof of absence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..exceptions import ReceiptError, StateFormatError, StateMismatchError
from ..publishing import files
from ..publishing.config import Checksum, Count, Exactness, RowCount
from ..publishing.exactness import exactness
from ..publishing.folder import ADAPTER
from ..publishing.rebuilding import read_adapter

Measured = Annotated[float, Meta(ge=0)]


class Receipt(Struct):
    """What every receipt holds; others of its keys say where it was made."""

    time: str
    n_rows: RowCount
    n_rectified: Count
    n_samples_learned: Count
    exactness: Exactness
    residual: Measured
    drift: Measured
    position_gap: Measured
    rounding: Measured
    seen_by: list[str]
    searched_by: list[str]
    anchor: Literal["pretrained", "finetuned", "trained"]
    seconds: Measured
    request_ids: list[str]
    redoes: list[Checksum]
    n_copies_left: Count
    kept_features: bool
    chain: str
    previous: str
    checksum: Checksum


class Claim(Struct):
    """The last line of a signed export."""

    heads: dict[str, Checksum]
    time: str
    signature: str
    public_key: str


_MEASURED = ("drift", "position_gap", "residual", "rounding", "seen_by", "searched_by", "anchor")


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
    n_rectified: int = 0,
    n_copies_left: int,
    request_ids: Sequence[str],
    redoes: Sequence[str],
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

    n_rectified : int, default=0
        How many of the rows were learned again with other labels.

    n_copies_left : int
        Learned copies of what was forgotten; of rectified rows those with yet other labels.

    request_ids : sequence of str
        The caller's.

    redoes : sequence of str
        Checksums of receipts that were lost with a newer state, whose deletions this one repeats.

    kept_features : bool
        Whether features were subtracted that had been kept, and not computed again.
    """
    left: dict[str, Any] = {} if n_left is None else {"n_rows_left_under_sample_ids": n_left}
    return files.with_checksum(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "n_rows": n_rows,
            "n_rectified": n_rectified,
            "n_samples_learned": n_samples_learned,
            "method": "downdate of the statistics and one solve",
            "request_ids": list(request_ids),
            "redoes": list(redoes),
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


def chain_heads(receipts: Iterable[Mapping[str, Any]], chain: str = "") -> dict[str, str]:
    """Return the checksum of the last receipt of each chain; that of `chain` may be empty."""
    first = {chain: ""} if chain else {}
    return first | {receipt["chain"]: receipt["checksum"] for receipt in receipts}


def export_receipts(
    receipts: Iterable[Mapping[str, Any]], path: str | os.PathLike[str], signing_key: bytes | None
) -> None:
    """Write receipts as JSON lines, signed on demand; see the classifier."""
    path, receipts = Path(path).absolute(), [*receipts]
    documents = [dict(receipt) for receipt in receipts]
    if signing_key is not None:
        documents.append(_signed(chain_heads(receipts), signing_key))
    data = b"".join(files.canonical(document) + b"\n" for document in documents)
    files.replace(path.parent, path.name, data)


def _signed(heads: dict[str, str], signing_key: bytes) -> dict[str, Any]:
    """Return the last line of an export: what the chains end in, when, and the owner's signature."""
    if not isinstance(signing_key, bytes) or len(signing_key) != 32:
        raise ValueError(
            "Expected signing_key to be the 32 bytes of an Ed25519 key (secrets.token_bytes(32)), got "
            "something else."
        )
    key = _ed25519().Ed25519PrivateKey.from_private_bytes(signing_key)
    claim = {"heads": heads, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    signature = key.sign(files.canonical(claim)).hex()
    return claim | {"signature": signature, "public_key": key.public_key().public_bytes_raw().hex()}


def _ed25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ImportError(
            "Signatures need the package cryptography: pip install 'fastntk_sk[encryption]'."
        ) from error
    return ed25519


def verify_receipts(
    path: str | os.PathLike[str], *, adapter: Any = None, public_key: str | None = None
) -> list[dict[str, Any]]:
    """Check that exported receipts are whole, in order and consistent.

    Each receipt holds the checksum of the one before it: a line that was changed, inserted, left out or
    moved is noticed; so is one whose verdict its own numbers contradict. Lines that were cut off at
    the end, and deletions that came later, are noticed against what was published. A chain is evidence
    of what was run by somebody who is honest, and with a signature of who says so; it is no proof that
    nothing was kept: who holds the state can write another chain.

    Parameters
    ----------
    path : str or path-like
        As :meth:`FastNTKClassifier.export_receipts` wrote it.

    adapter : str, path-like or FastNTKClassifier, default=None
        The folder of the published adapter, or the estimator that `from_pretrained` made of it: the
        chains must end where it says, no earlier and no later.

    public_key : str, default=None
        The owner's, 64 hexadecimal digits which he gave you by another way than the file: the file must
        be signed with it.

    Returns
    -------
    receipts : list of dict

    Raises
    ------
    ReceiptError
        If a line does not fit, the message names it; if the chains do not end as the adapter says; if
        the signature is missing or another's.

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
    ...     receipts = verify_receipts(f"{folder}/receipts.jsonl", adapter=clf)
    >>> [receipt["n_rows"] for receipt in receipts]
    [5, 2]
    """
    path = Path(path).absolute()
    lines = files.read(path.parent, path.name).splitlines()
    claim = None
    if lines and lines[-1].startswith(b'{"heads"'):  # canonical JSON has its keys in order
        claim = _parse(lines.pop(), Claim, "The signature")
    receipts = parse_receipts(lines, path.name)
    heads = chain_heads(receipts)
    if claim is not None:
        _check_signature(claim, heads)
    if public_key is not None and (claim is None or claim["public_key"] != public_key.lower()):
        raise ReceiptError(f"{path.name} is not signed with the key {public_key}.")
    if adapter is not None:
        _check_heads(receipts, published_heads(adapter), path.name)
    return receipts


def published_heads(adapter: Any) -> dict[str, str]:
    """Return the heads of the chains that an adapter names; it is a folder or an estimator."""
    if hasattr(adapter, "_adapter"):
        return dict(adapter._adapter.heads)
    return dict(read_adapter(files.read(Path(adapter), ADAPTER), ADAPTER)[0].receipts)


def lost(chains: set[str], deletions: set[str], other: Any) -> dict[str, Mapping[str, Any]]:
    """Return what others know of deletions in these chains that are not among these, by checksum.

    `other` is what `published_heads` takes, or the path of exported receipts, which tell more.
    """
    if not hasattr(other, "_adapter") and Path(other).is_file():
        found = {receipt["checksum"]: receipt for receipt in verify_receipts(other)}
    else:
        found = {head: {"chain": chain} for chain, head in published_heads(other).items() if head}
    if found and not chains & {receipt["chain"] for receipt in found.values()}:
        raise StateMismatchError(
            "Expected receipts or an adapter of this model, got those of another fit."
        )
    return {
        head: receipt
        for head, receipt in found.items()
        if receipt["chain"] in chains and head not in deletions
    }


def _check_heads(receipts: list[dict[str, Any]], published: dict[str, str], name: str) -> None:
    """Raise ReceiptError unless chains end where an adapter says."""
    missing = sorted(set(published.values()) - {"", *(receipt["checksum"] for receipt in receipts)})
    if missing:
        raise ReceiptError(
            f"{name} lacks the receipts {missing}, which were published. It was cut off, or belongs to "
            "another model."
        )
    later, done = [], {chain for chain, head in published.items() if not head}
    for receipt in receipts:
        if receipt["chain"] not in published or receipt["chain"] in done:
            later.append(receipt["time"])
        if receipt["checksum"] == published.get(receipt["chain"]):
            done.add(receipt["chain"])
    if later:
        raise ReceiptError(
            f"{name} tells of {len(later)} deletions that the adapter does not know, the first at "
            f"{later[0]}: what is published still holds those rows. Publish it again."
        )


def _check_signature(claim: dict[str, Any], heads: dict[str, str]) -> None:
    """Raise ReceiptError unless a claim is signed as it says, and is about these chains."""
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature

    signed = {name: claim[name] for name in ("heads", "time")}
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(claim["public_key"]))
        key.verify(bytes.fromhex(claim["signature"]), files.canonical(signed))
    except (InvalidSignature, ValueError) as error:
        raise ReceiptError("The signature does not fit what it signs. Ask for the file anew.") from error
    if claim["heads"] != heads:
        raise ReceiptError("The signature is of other receipts than the file holds. Ask for it anew.")


def _parse(line: bytes, kind: type[Struct], name: str) -> dict[str, Any]:
    try:
        document = files.parse_json(line, name)
        msgspec.convert(document, kind)
    except (StateFormatError, msgspec.ValidationError) as error:
        raise ReceiptError(f"{name} is not what was written: {error}") from error
    return document


def parse_receipts(documents: Iterable[bytes], name: str) -> list[dict[str, Any]]:
    """Return receipts that are whole and follow one another, from their JSON; see `verify_receipts`."""
    receipts: list[dict[str, Any]] = []
    last: dict[str, str] = {}
    for i, line in enumerate(documents, 1):
        receipt = _parse(line, Receipt, f"Receipt {i} of {name}")
        try:
            files.check_checksum(receipt, f"Receipt {i} of {name}")
        except StateFormatError as error:
            raise ReceiptError(str(error)) from error
        if receipt["n_rectified"] > receipt["n_rows"]:
            raise ReceiptError(f"Receipt {i} of {name} tells of more rows rectified than it took away.")
        verdict = exactness(**{key: receipt[key] for key in _MEASURED})
        if not set(verdict["reasons"]) <= set(receipt["exactness"]["reasons"]) or (
            receipt["exactness"]["exact"] and receipt["exactness"]["reasons"]
        ):
            raise ReceiptError(
                f"Receipt {i} of {name} says {receipt['exactness']}, and its own numbers say "
                f"{verdict['reasons']}."
            )
        if receipt["previous"] != last.get(receipt["chain"], ""):
            raise ReceiptError(
                f"Receipt {i} of {name} does not follow the one before it in its chain: receipts "
                "were left out, inserted or moved. Ask for the file as it was exported."
            )
        last[receipt["chain"]] = receipt["checksum"]
        receipts.append(receipt)
    return receipts
