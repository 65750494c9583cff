"""What a deletion did, with what, and how exactly: evidence of what was run, not proof of absence."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..exceptions import ReceiptError, StateFormatError
from ..publishing import files
from ..publishing.schema import MAX_INTEGER, Check, integer, list_of, number, one_of, text

EXACT = "exact for the linearised model"
_RECEIPT: dict[str, Check] = {  # what is read of one again
    "n_rows": integer(1, MAX_INTEGER),
    "drift": number(0),
    "seen_by": list_of(text()),
    "searched_by": list_of(text()),
    "anchor": one_of("pretrained", "finetuned"),
    "chain": text(),
    "previous": text(),
    "digest": text(),
}
_PACKAGES = ("fastntk_sk", "torch", "timm", "numpy", "pillow")


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


def environment(device: str, precision: str) -> dict[str, Any]:
    """Return what decides whether a Jacobian comes out bitwise the same.

    Parameters
    ----------
    device : str

    precision : str
        Of the backbone's passes.

    Returns
    -------
    environment : dict
        Plain Python values: library versions, machine, device, precision, threads.
    """
    return {
        "versions": dict(_versions()),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }


def exactness(**k):
    reasons = []
    if k["drift"]:
        reasons.append(f"drift {k['drift']}")
    if k["residual"] > 1e-10:
        reasons.append(f"residual {k['residual']}")
    if k["rounding"] > 1e-8:
        reasons.append(f"rounding {k['rounding']}")
    reasons += [f"{s} has seen" for s in [*k["seen_by"], *k["searched_by"]]]
    if k["anchor"] == "finetuned":
        reasons.append("anchor")
    if k["backbone_has_seen"]:
        reasons.append("backbone")
    return {"exact": not reasons, "reasons": reasons}


def make_receipt(*, chain, earlier, environment, n_left, **rest):
    return files.signed(
        {**rest, **environment, "chain": chain, "previous": _heads(earlier).get(chain, "")}
    )


def senses(receipts):
    return sorted({"exact" if r["exactness"]["exact"] else "approximate" for r in receipts})


def chain_heads(receipts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the digest of the last receipt of each chain."""
    return list(_heads(receipts).values())


def export_receipts(receipts: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write receipts as JSON lines; see the classifier.

    Parameters
    ----------
    receipts : iterable of dict

    path : str or path-like
    """
    path = Path(path).absolute()
    files.replace(path.parent, path.name, lines(*receipts))


def lines(*documents: Mapping[str, Any]) -> bytes:
    """Return JSON lines."""
    return b"".join(files.canonical(document, indent=None) + b"\n" for document in documents)


def verify_receipts(path: str | os.PathLike[str], *, heads: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Check that exported receipts are whole and in order.

    Each receipt holds the digest of the one before it: a line that was changed, inserted, left out or
    moved is noticed. Lines that were cut off at the end are noticed only through `heads`. A chain is
    evidence of what was run by somebody who is honest, not a proof that nothing was kept: who holds
    the state can write another chain.

    Parameters
    ----------
    path : str or path-like
        As :meth:`FastNTKClassifier.export_receipts` wrote it.

    heads : iterable of str, default=()
        Digests that must be among the receipts: those under "receipts" in the `config.json` of a
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
    receipts = parse_receipts(files.read(path.parent, path.name), path.name)
    wanted = {heads} if isinstance(heads, str) else set(heads)
    missing = sorted(wanted - {receipt["digest"] for receipt in receipts})
    if missing:
        raise ReceiptError(
            f"{path.name} lacks the receipts {missing}, which were published. It was cut off, or "
            "belongs to another model."
        )
    return receipts


def parse_receipts(data: bytes, name: str) -> list[dict[str, Any]]:
    """Return receipts that are whole and follow one another; see `verify_receipts`.

    Parameters
    ----------
    data : bytes
        JSON lines.

    name : str
        For messages.
    """
    receipts: list[dict[str, Any]] = []
    last: dict[str, str] = {}
    for i, line in enumerate(data.splitlines(), 1):
        try:
            receipt = files.parse_json(line, f"Receipt {i}")
            files.check_signed(receipt, f"Receipt {i}")
            for key, rule in _RECEIPT.items():
                if not rule(receipt.get(key)):
                    raise StateFormatError(f"Receipt {i} has no valid {key!r}.")
        except StateFormatError as error:
            raise ReceiptError(f"{name} is not what was written. {error}") from error
        if receipt["previous"] != last.get(receipt["chain"], ""):
            raise ReceiptError(
                f"Receipt {i} of {name} does not follow the one before it in its chain: receipts "
                "were left out, inserted or moved. Ask for the file as it was exported."
            )
        last[receipt["chain"]] = receipt["digest"]
        receipts.append(receipt)
    return receipts


def _heads(receipts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {receipt["chain"]: receipt["digest"] for receipt in receipts}
