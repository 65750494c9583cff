"""The private half of a fitted estimator as bytes: statistics, ledger, receipts, a tuned anchor.

They describe the rows that are still learned, and a fine-tuned anchor those that were forgotten too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..exceptions import DecryptionError, StateFormatError
from ..publishing.files import dump, parse_json, parse_tensors, under
from ..publishing.schema import MAX_INTEGER, integer, list_of, real, section, text
from ..state import State
from ..sums.ridge import GRID
from ..sums.statistics import Statistics
from ..tangents.model import LinearizedModel, Parameters
from .ledger import KEY_BYTES, Entry, Ledger, Segment
from .receipts import lines, parse_receipts

FILES = {"statistics": "safetensors", "ledger": "safetensors", "receipts": "jsonl"}

_RECORDS: dict[str, Any] = {
    "class_rows": list_of(integer(0, MAX_INTEGER)),
    "environment": lambda value: isinstance(value, dict),
    "n_forgotten": integer(0, MAX_INTEGER),
    "chain": text(length=64),
    "residual": real,
    "alpha": real,
    "alpha_path": list_of(real),
    "seconds_per_row": real,
    "seconds_per_solve": real,
    "history": list_of(lambda value: isinstance(value, dict)),
    "linearity": real,
}
_SEGMENT = {
    "key": (torch.uint8, KEY_BYTES),
    "digest": (torch.uint8, KEY_BYTES),
    "owner": (torch.uint8, KEY_BYTES),
    "owned": (torch.bool, 0),
    "label": (torch.int64, 0),
    "weight": (torch.float64, 0),
    "count": (torch.int64, 0),
}


@dataclass(frozen=True)
class Anchor:
    """A fine-tuned anchor, which has seen every row of the fit.

    Parameters
    ----------
    network : dict of str to Tensor
        The trainable subset as SGD left it, and prompts.

    directions : Tensor of shape (C, d)
        V.

    moved : Tensor of shape (k,)

    delta : Tensor of shape (p,)
        Solved displacement from the anchor.

    sgd : Tensor of shape (C, d + 1)
        W as SGD left it.
    """

    network: dict[str, Tensor]
    directions: Tensor
    moved: Tensor
    delta: Tensor
    sgd: Tensor


def pack(state: State) -> dict[str, bytes]:
    """Return the content of each private file.

    Parameters
    ----------
    state : State

    Returns
    -------
    contents : dict
        By the keys of `FILES`.

    Raises
    ------
    StateFormatError
        If receipts hold what could not be read again.
    """
    tensors = state.statistics.tensors()
    tensors |= {f"probe.{i:04}": probe for i, probe in enumerate(state.probes)}
    if state.model.moved is not None:
        assert state.sgd is not None
        own = state.model.own_tensors()
        tensors |= {f"anchor.network.{name}": tensor for name, tensor in own.items()}
        tensors |= {
            "anchor.directions": state.model.directions,
            "anchor.moved": state.model.moved,
            "anchor.delta": state.parameters.delta,
            "anchor.sgd": state.sgd.W,
        }
    records = {name: getattr(state, name) for name in _RECORDS}
    records["class_rows"] = state.class_rows.tolist()
    records["alpha_path"] = [*state.alpha_path.values()]
    receipts = lines(records, *state.receipts)
    _parse_receipts(receipts, "The private state")  # before a file is written that could not be read
    return {
        "statistics": dump(tensors),
        "ledger": dump(_ledger_tensors(state.ledger)),
        "receipts": receipts,
    }


def parse_statistics(data: bytes, name: str) -> tuple[dict[str, Tensor], Anchor | None]:
    """Return sums and probes, and the fine-tuned anchor if there is one.

    Parameters
    ----------
    data : bytes

    name : str
        Of the file, for messages.
    """
    tensors, _ = parse_tensors(data, name)
    parts = under(tensors, "anchor.")
    tensors = {n: t for n, t in tensors.items() if not n.startswith("anchor.")}
    if not parts:
        return tensors, None
    network = under(parts, "network.")
    single = {n: t for n, t in parts.items() if not n.startswith("network.")}
    if single.keys() != {"directions", "moved", "delta", "sgd"}:
        raise StateFormatError(f"{name} does not hold a whole anchor. Restore a backup.")
    return tensors, Anchor(network, **single)


def restore(
    model: LinearizedModel,
    W: Tensor,
    displacement: Tensor,
    tensors: dict[str, Tensor],
    anchor: Anchor | None,
    ledger: tuple[bytes, str],
    receipts: tuple[bytes, str],
) -> State:
    """Return the state of a model and its private files, each checked against the others.

    Parameters
    ----------
    model : LinearizedModel

    W, displacement : Tensor
        Of the adapter.

    tensors, anchor
        Of `parse_statistics`.

    ledger, receipts : pair (bytes, str)
        Content and name of the file.

    Returns
    -------
    state : State

    Raises
    ------
    StateFormatError
        If a tensor is missing, unknown or of another shape, or a file contradicts another.
    """
    probes = [tensors.pop(name) for name in sorted(tensors) if name.startswith("probe.")]
    with torch.device("meta"):  # the sizes alone, which the file has to justify
        empty = model.empty_statistics()
    shapes = {name: (t.dtype, tuple(t.shape)) for name, t in empty.tensors().items()}
    check_tensors(tensors, shapes, "The statistics")
    for probe in probes:
        check_tensors({"probe": probe}, {"probe": (torch.float64, (model.n_probe,))}, "The statistics")
    if not probes:
        raise StateFormatError("The statistics hold no probe. Restore a backup.")
    records, chain = _parse_receipts(*receipts)
    known = _parse_ledger(*ledger)
    counted = [0] * len(W)
    for segment in known.segments:
        for entries in segment.rows.values():
            for entry, count in entries.items():
                if entry.label >= len(W):
                    raise StateFormatError(f"{ledger[1]} names a class that does not exist.")
                counted[entry.label] += count
    if counted != records["class_rows"] or not 0 < sum(counted) <= MAX_INTEGER:
        raise StateFormatError("Ledger and receipts do not count the same rows. Restore a backup.")
    delta = displacement if anchor is None else anchor.delta
    return State(
        model,
        Statistics.from_tensors(tensors, empty.constant, empty.n_tangents),
        known,
        np.array(counted, dtype=np.int64),
        model.parameters(W, delta),
        records["environment"],
        probes,
        records["n_forgotten"],
        chain,
        records["residual"],
        records["alpha"],
        dict(zip(GRID, records["alpha_path"], strict=False)),
        records["seconds_per_row"],
        records["seconds_per_solve"],
        sgd=None if anchor is None else Parameters(anchor.sgd, torch.zeros_like(delta)),
        history=records["history"],
        linearity=records["linearity"],
        chain=records["chain"],
    )


def _parse_receipts(data: bytes, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    first, _, rest = data.partition(b"\n")
    return section(parse_json(first, name), _RECORDS, name), parse_receipts(rest, name)


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], what: str
) -> None:
    """Raise StateFormatError unless tensors are those that are expected, of these dtypes and shapes."""
    got = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    wrong = sorted(n for n in got.keys() | expected.keys() if got.get(n) != expected.get(n))
    if wrong:
        name = wrong[0]
        raise StateFormatError(
            f"{what}: expected tensor {name!r} to be {expected.get(name, 'absent')}, got "
            f"{got.get(name, 'none')}. Restore a backup."
        )


def encrypt(data: bytes, key: bytes | str) -> bytes:
    """Encrypt with Fernet of the package cryptography.

    Parameters
    ----------
    data : bytes

    key : bytes or str
        Of `Fernet.generate_key()`.

    Raises
    ------
    DecryptionError
        If the key is malformed.
    """
    return _fernet(key).encrypt(data)


def decrypt(data: bytes, key: bytes | str, name: str) -> bytes:
    """Return what `encrypt` was given.

    Raises
    ------
    DecryptionError
        If the key is malformed or another one, or the data were changed.
    """
    from cryptography.fernet import InvalidToken

    try:
        return _fernet(key).decrypt(data)
    except InvalidToken:
        raise DecryptionError(
            f"{name} was encrypted with another key, or was changed since. Pass the key of save()."
        ) from None


def _fernet(key: bytes | str) -> Any:
    try:
        from cryptography.fernet import Fernet
    except ImportError as error:
        raise ImportError(
            "Encryption needs the package cryptography: pip install 'fastntk_sk[encryption]'."
        ) from error
    try:
        return Fernet(key)
    except (ValueError, TypeError) as error:
        raise DecryptionError(
            "Expected key to be 32 url-safe base64-encoded bytes, got something else. Make one with "
            "cryptography.fernet.Fernet.generate_key(), and keep it apart from the files."
        ) from error


def _ledger_tensors(ledger: Ledger) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for i, segment in enumerate(ledger.segments):
        lines = [(d, e, n) for d, entries in segment.rows.items() for e, n in entries.items()]
        empty = bytes(KEY_BYTES)
        columns = {
            "key": _bytes([segment.key]),
            "digest": _bytes([digest for digest, _, _ in lines]),
            "owner": _bytes([entry.owner or empty for _, entry, _ in lines]),
            "owned": torch.tensor([bool(e.owner) for _, e, _ in lines], dtype=torch.bool),
            "label": torch.tensor([e.label for _, e, _ in lines], dtype=torch.int64),
            "weight": torch.tensor([e.weight for _, e, _ in lines], dtype=torch.float64),
            "count": torch.tensor([n for _, _, n in lines], dtype=torch.int64),
        }
        tensors |= {f"{i}.{name}": column for name, column in columns.items()}
    return tensors


def _bytes(rows: list[bytes]) -> Tensor:
    flat = np.frombuffer(b"".join(rows), dtype=np.uint8).copy()
    return torch.from_numpy(flat).view(len(rows), KEY_BYTES)


def _parse_ledger(data: bytes, name: str) -> Ledger:
    tensors, _ = parse_tensors(data, name)
    segments: list[Segment] = []
    while f"{len(segments)}.label" in tensors:
        prefix = f"{len(segments)}."
        parts = {n.removeprefix(prefix): tensors.pop(n) for n in [*tensors] if n.startswith(prefix)}
        rows = {"key": 1}
        expected = {
            column: (dtype, (rows.get(column, parts["label"].numel()), *([width] if width else [])))
            for column, (dtype, width) in _SEGMENT.items()
        }
        check_tensors(parts, expected, name)
        if (parts["label"] < 0).any() or (parts["count"] < 1).any() or (parts["weight"] <= 0).any():
            raise StateFormatError(f"{name} holds impossible rows. Restore a backup.")
        segment = Segment(parts["key"].numpy().tobytes())
        columns = (parts[n].tolist() for n in ("label", "weight", "owned", "count"))
        for i, (label, weight, owned, count) in enumerate(zip(*columns, strict=True)):
            owner = parts["owner"][i].numpy().tobytes() if owned else b""
            entries = segment.rows.setdefault(parts["digest"][i].numpy().tobytes(), Counter())
            entries[Entry(label, weight, owner)] = count
        segments.append(segment)
    if tensors or not segments:
        raise StateFormatError(f"{name} holds no ledger, or more than one. Restore a backup.")
    return Ledger(segments)
