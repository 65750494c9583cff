"""The private half of a fitted estimator as bytes: statistics, ledger, receipts, a tuned anchor.

They describe the rows that are still learned, and a fine-tuned anchor those that were forgotten too.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Meta, Struct
from torch import Tensor

from ..exceptions import DecryptionError, StateFormatError
from ..publishing import files
from ..publishing.config import Count
from ..state import State, Tuning
from ..sums.ridge import GRID
from ..sums.statistics import Statistics
from ..tangents.model import LinearizedModel
from .ledger import KEY_BYTES, Entry, Ledger, Segment
from .private import Private
from .receipts import lines, parse_receipts

FILES = {"statistics": "safetensors", "ledger": "safetensors", "receipts": "jsonl"}
_SEGMENT = {
    "key": (torch.uint8, KEY_BYTES),
    "digest": (torch.uint8, KEY_BYTES),
    "owner": (torch.uint8, KEY_BYTES),
    "owned": (torch.bool, 0),
    "label": (torch.int64, 0),
    "weight": (torch.float64, 0),
    "count": (torch.int64, 0),
}


class Environment(Struct):
    """Where the rows were learned."""

    versions: dict[str, str]
    machine: str
    cpu: str
    device: str
    precision: str
    threads: Annotated[int, Meta(ge=1, le=1024)]


class Records(Struct):
    """Measurements of a state, and the name of its chain; JSON has null for what is not finite."""

    class_rows: list[Count]
    environment: Environment
    chain: Annotated[str, Meta(max_length=64)]
    removed: float
    residual: float | None
    alpha: float
    alpha_path: list[float | None]
    seconds_per_row: float
    seconds_per_solve: float
    history: list[dict[str, Any]]
    linearity: float | None


class Anchor(NamedTuple):
    """A fine-tuned anchor, which has seen every row of the fit.

    `network` is the trainable subset as SGD left it, and prompts; `directions` V of shape (C, d);
    `moved` of shape (k,); `delta` the solved displacement of shape (p,); `sgd` W of shape (C, d + 1) as
    SGD left it.
    """

    network: dict[str, Tensor]
    directions: Tensor
    moved: Tensor
    delta: Tensor
    sgd: Tensor


def pack(private: Private) -> dict[str, bytes]:
    """Return the content of each private file, by the keys of `FILES`."""
    state = private.state
    tensors = state.statistics.tensors()
    tensors |= {f"probe.{i:04}": probe for i, probe in enumerate(state.probes)}
    if state.model.moved is not None:
        assert state.tuning is not None
        own = state.model.own_tensors()
        tensors |= {f"anchor.network.{name}": tensor for name, tensor in own.items()}
        tensors |= {
            "anchor.directions": state.model.directions,
            "anchor.moved": state.model.moved,
            "anchor.delta": state.parameters.delta,
            "anchor.sgd": state.tuning.W,
        }
    records = Records(
        state.class_rows.tolist(),
        Environment(**state.environment),
        private.chain,
        state.removed,
        state.residual,
        state.alpha,
        [*state.alpha_path.values()],
        state.seconds_per_row,
        state.seconds_per_solve,
        state.tuning.history if state.tuning else [],
        state.tuning.linearity if state.tuning else 0.0,
    )
    return {
        "statistics": files.dump(tensors),
        "ledger": files.dump(_ledger_tensors(private.ledger)),
        "receipts": msgspec.json.encode(records, enc_hook=files.plain)
        + b"\n"
        + lines(*private.receipts),
    }


def parse_statistics(data: bytes, name: str) -> tuple[dict[str, Tensor], Anchor | None]:
    """Return sums and probes, and the fine-tuned anchor if there is one."""
    tensors, _ = files.parse_tensors(data, name)
    parts = files.under(tensors, "anchor.")
    tensors = {n: t for n, t in tensors.items() if not n.startswith("anchor.")}
    if not parts:
        return tensors, None
    network = files.under(parts, "network.")
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
) -> Private:
    """Return the private half of a model, each file checked against the others.

    Parameters
    ----------
    model : LinearizedModel

    W, displacement : Tensor
        Of the adapter.

    tensors, anchor
        Of `parse_statistics`.

    ledger, receipts : pair (bytes, str)
        Content and name of the file.

    Raises
    ------
    StateFormatError
        If a tensor is missing, unknown or of another shape, or a file contradicts another.
    """
    probes = [tensors.pop(name) for name in sorted(tensors) if name.startswith("probe.")]
    with torch.device("meta"):  # the sizes alone, which the file has to justify
        empty = model.empty_statistics()
    shapes = {name: (t.dtype, tuple(t.shape)) for name, t in empty.tensors().items()}
    files.check_tensors(tensors, shapes, "The statistics")
    for probe in probes:
        files.check_tensors(
            {"probe": probe}, {"probe": (torch.float64, (model.n_probe,))}, "The statistics"
        )
    if not probes:
        raise StateFormatError("The statistics hold no probe. Restore a backup.")
    first, _, rest = receipts[0].partition(b"\n")
    records = files.convert(files.parse_json(first, receipts[1]), Records, receipts[1])
    known = _parse_ledger(*ledger)
    counted = [0] * len(W)
    for segment in known.segments:
        for entries in segment.rows.values():
            for entry, count in entries.items():
                if entry.label >= len(W):
                    raise StateFormatError(f"{ledger[1]} names a class that does not exist.")
                counted[entry.label] += count
    if counted != records.class_rows or not 0 < sum(counted) <= 2**53:
        raise StateFormatError("Ledger and receipts do not count the same rows. Restore a backup.")
    chain = parse_receipts(rest, receipts[1])
    delta = displacement if anchor is None else anchor.delta
    linearity = math.nan if records.linearity is None else records.linearity
    tuning = None if anchor is None else Tuning(anchor.sgd, records.history, linearity)
    path = [math.inf if value is None else value for value in records.alpha_path]
    state = State(
        model,
        Statistics(**tensors, constant=empty.constant, n_tangents=empty.n_tangents),
        class_rows=np.array(counted, dtype=np.int64),
        parameters=model.parameters(W, delta),
        environment=msgspec.structs.asdict(records.environment),
        probes=probes,
        removed=records.removed,
        residual=math.nan if records.residual is None else records.residual,
        alpha=records.alpha,
        alpha_path=dict(zip(GRID, path, strict=False)),
        seconds_per_row=records.seconds_per_row,
        seconds_per_solve=records.seconds_per_solve,
        tuning=tuning,
    )
    return Private(state, known, chain, records.chain)


def encrypt(data: bytes, key: bytes | str) -> bytes:
    """Encrypt with Fernet, or raise DecryptionError for a malformed key."""
    return _fernet(key).encrypt(data)


def decrypt(data: bytes, key: bytes | str, name: str) -> bytes:
    """Return what `encrypt` was given, or raise DecryptionError."""
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
        rows = [(d, e, n) for d, entries in segment.rows.items() for e, n in entries.items()]
        empty = bytes(KEY_BYTES)
        columns = {
            "key": _bytes([segment.key]),
            "digest": _bytes([digest for digest, _, _ in rows]),
            "owner": _bytes([entry.owner or empty for _, entry, _ in rows]),
            "owned": torch.tensor([bool(e.owner) for _, e, _ in rows], dtype=torch.bool),
            "label": torch.tensor([e.label for _, e, _ in rows], dtype=torch.int64),
            "weight": torch.tensor([e.weight for _, e, _ in rows], dtype=torch.float64),
            "count": torch.tensor([n for _, _, n in rows], dtype=torch.int64),
        }
        tensors |= {f"{i}.{name}": column for name, column in columns.items()}
    return tensors


def _bytes(rows: list[bytes]) -> Tensor:
    flat = np.frombuffer(b"".join(rows), dtype=np.uint8).copy()
    return torch.from_numpy(flat).view(len(rows), KEY_BYTES)


def _parse_ledger(data: bytes, name: str) -> Ledger:
    tensors, _ = files.parse_tensors(data, name)
    segments: list[Segment] = []
    while f"{len(segments)}.label" in tensors:
        prefix = f"{len(segments)}."
        parts = {n.removeprefix(prefix): tensors.pop(n) for n in [*tensors] if n.startswith(prefix)}
        rows = {"key": 1}
        expected = {
            column: (dtype, (rows.get(column, parts["label"].numel()), *([width] if width else [])))
            for column, (dtype, width) in _SEGMENT.items()
        }
        files.check_tensors(parts, expected, name)
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
