"""The private half of a fitted estimator as rows of its database.

They describe the rows that are still learned, and a trained anchor those that were forgotten too.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Meta, Struct
from torch import Tensor

from ..exceptions import StateFormatError
from ..publishing import files
from ..publishing.config import Count
from ..state import State, Tuning
from ..sums.ridge import GRID
from ..sums.statistics import Statistics
from ..tangents.model import LinearizedModel
from .database import Database, row_checksum
from .ledger import KEY_BYTES, Entry, Ledger, Segment
from .private import Private
from .receipts import parse_receipts

_TRIANGLES = ("A", "G")
_ID_KINDS: dict[str, Callable[[str], str | int]] = {"str": str, "int": int}


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
    """A trained anchor, which has seen every row of the fit.

    `network` is the trainable subset as training left it, and prompts; `directions` V of shape (C, d);
    `moved` of shape (k,); `delta` the solved displacement of shape (p,); `readout` W of shape (C, d + 1)
    as training left it.
    """

    network: dict[str, Tensor]
    directions: Tensor
    moved: Tensor
    delta: Tensor
    readout: Tensor


def pack(db: Database, private: Private, adapter: bytes) -> None:
    """Let a database hold a private half and its adapter; what is there already is not written again."""
    state = private.state
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
    tensors = {f"probe.{i:04}": probe for i, probe in enumerate(state.probes)}
    if state.model.moved is not None:
        assert state.tuning is not None
        own = state.model.own_tensors()
        tensors |= {f"anchor.network.{name}": tensor for name, tensor in own.items()}
        tensors |= {
            "anchor.directions": state.model.directions,
            "anchor.moved": state.model.moved,
            "anchor.delta": state.parameters.delta,
            "anchor.readout": state.tuning.W,
        }
    contents = {
        "adapter": adapter,
        "records": msgspec.json.encode(records, enc_hook=files.plain),
        "tensors": files.dump(tensors),
    }
    db.write("model", contents)
    sums = state.statistics.tensors()
    packed = {n: packed_triangle(t) if n in _TRIANGLES else t.numpy() for n, t in sums.items()}
    db.write("statistics", {name: array.tobytes() for name, array in packed.items()})
    db.replace("segments", [(i, segment.key) for i, segment in enumerate(private.ledger.segments)])
    _pack_ledger(db, private.ledger)
    _pack_features(db, private.ledger)
    db.replace("receipts", [(files.canonical(receipt),) for receipt in private.receipts])


def _pack_ledger(db: Database, ledger: Ledger) -> None:
    """Blank the rows that have gone or changed, and append those that are new."""
    segments, there, gone = ledger.segments, set[tuple[int, bytes, Entry]](), []
    for number, (place, digest, owner, label, weight, copies) in db.rows("ledger"):
        entry = Entry(label, weight, owner)
        known = segments[place].rows if place < len(segments) else {}
        if known.get(digest, {}).get(entry) == copies:
            there.add((place, digest, entry))
        else:
            gone.append(number)
    db.blank("ledger", gone)
    new = [
        (place, digest, entry.owner, entry.label, entry.weight, copies)
        for place, segment in enumerate(segments)
        for digest, entries in segment.rows.items()
        for entry, copies in entries.items()
        if (place, digest, entry) not in there
    ]
    db.append("ledger", _shuffled(new))


def _pack_features(db: Database, ledger: Ledger) -> None:
    """Do the same with kept features and with the ids of their rows."""
    segments, there, gone = ledger.segments, set[tuple[int, bytes]](), []
    for number, place, digest, checksum in db.index("features", "row, segment, digest, checksum"):
        held = segments[place].features.get(digest) if place < len(segments) else None
        if held is not None and checksum == row_checksum(
            "features", number, (place, digest, held.tobytes())
        ):
            there.add((place, digest))
        else:
            gone.append(number)
    db.blank("features", gone)
    new = [(i, d) for i, segment in enumerate(segments) for d in segment.features if (i, d) not in there]
    db.append("features", ((i, d, segments[i].features[d].tobytes()) for i, d in _shuffled(new)))
    wanted = {
        (i, owner, type(one).__name__, str(one))
        for i, segment in enumerate(segments)
        for owner, one in segment.ids.items()
    }
    found = {values: number for number, values in db.rows("ids")}
    db.blank("ids", [number for values, number in found.items() if values not in wanted])
    db.append("ids", _shuffled([*wanted - found.keys()]))


def _shuffled(rows: list[Any]) -> list[Any]:
    """Return rows in random order: who knows that of the data could tell a row by its blank."""
    order = np.random.default_rng(secrets.randbits(128)).permutation(len(rows))
    return [rows[i] for i in order]


def packed_triangle(matrix: Tensor) -> np.ndarray:
    """Return the rows of the lower triangle of a symmetric matrix, one behind the other."""
    array = matrix.numpy()
    return np.concatenate([np.zeros(0), *(array[i, : i + 1] for i in range(len(array)))])


def unpacked_triangle(packed: np.ndarray, n: int) -> Tensor:
    """Return the symmetric matrix of shape (n, n) that `packed_triangle` was given."""
    matrix, start = np.zeros((n, n)), 0
    for i in range(n):
        matrix[i, : i + 1] = matrix[: i + 1, i] = packed[start : start + i + 1]
        start += i + 1
    return torch.from_numpy(matrix)


class Contents(NamedTuple):
    """What a database holds, each part checked by itself."""

    adapter: bytes
    records: Records
    tensors: dict[str, Tensor]
    anchor: Anchor | None
    statistics: dict[str, bytes]
    ledger: Ledger
    receipts: list[dict[str, Any]]
    features: list[tuple[int, tuple[Any, ...]]]


def unpack(db: Database, name: str) -> Contents:
    """Return what `pack` wrote.

    Raises
    ------
    StateFormatError
        If something is missing, or is not what was written.
    """
    model = db.read("model")
    if model.keys() != {"adapter", "records", "tensors"}:
        raise StateFormatError(f"{name} holds no whole state. Restore a backup.")
    records = files.convert(files.parse_json(model["records"], name), Records, name)
    tensors, _ = files.parse_tensors(model["tensors"], name)
    parts = files.under(tensors, "anchor.")
    anchor = None
    if parts:
        network = files.under(parts, "network.")
        single = {n: t for n, t in parts.items() if not n.startswith("network.")}
        if single.keys() != {"directions", "moved", "delta", "readout"}:
            raise StateFormatError(f"{name} does not hold a whole anchor. Restore a backup.")
        anchor = Anchor(network, **single)
    probes = {n: t for n, t in tensors.items() if n.startswith("probe.")}
    if len(probes) + len(parts) < len(tensors):
        raise StateFormatError(f"{name} holds tensors that are not known. Restore a backup.")
    receipts = parse_receipts((content for _, (content,) in db.rows("receipts")), name)
    ledger = _unpack_ledger(db, name)
    return Contents(
        model["adapter"],
        records,
        probes,
        anchor,
        db.read("statistics"),
        ledger,
        receipts,
        [*db.rows("features")],
    )


def restore(model: LinearizedModel, W: Tensor, displacement: Tensor, contents: Contents) -> Private:
    """Return the private half of a model, each part checked against the others.

    Parameters
    ----------
    model : LinearizedModel

    W, displacement : Tensor
        Of the adapter.

    contents : Contents

    Raises
    ------
    StateFormatError
        If a tensor is missing or of another shape, or a part contradicts another.
    """
    records, anchor, ledger = contents.records, contents.anchor, contents.ledger
    for probe in contents.tensors.values():
        files.check_tensors(
            {"probe": probe}, {"probe": (torch.float64, (model.n_probe,))}, "The statistics"
        )
    if not contents.tensors:
        raise StateFormatError("The statistics hold no probe. Restore a backup.")
    counted = [0] * len(W)
    for segment in ledger.segments:
        for entries in segment.rows.values():
            for entry, count in entries.items():
                if entry.label >= len(W):
                    raise StateFormatError("The ledger names a class that does not exist.")
                counted[entry.label] += count
    if counted != records.class_rows or not 0 < sum(counted) <= 2**53:
        raise StateFormatError("Ledger and records do not count the same rows. Restore a backup.")
    _unpack_features(contents.features, ledger, model)
    delta = displacement if anchor is None else anchor.delta
    linearity = math.nan if records.linearity is None else records.linearity
    path = [math.inf if value is None else value for value in records.alpha_path]
    state = State(
        model,
        _unpack_statistics(model, contents.statistics),
        class_rows=np.array(counted, dtype=np.int64),
        parameters=model.parameters(W, delta),
        environment=msgspec.structs.asdict(records.environment),
        probes=[probe for _, probe in sorted(contents.tensors.items())],
        removed=records.removed,
        residual=math.nan if records.residual is None else records.residual,
        alpha=records.alpha,
        alpha_path=dict(zip(GRID, path, strict=False)),
        seconds_per_row=records.seconds_per_row,
        seconds_per_solve=records.seconds_per_solve,
        tuning=None if anchor is None else Tuning(anchor.readout, records.history, linearity),
    )
    return Private(state, ledger, contents.receipts, records.chain)


def _unpack_statistics(model: LinearizedModel, contents: dict[str, bytes]) -> Statistics:
    """Return the sums of a model; its sizes, which the file has to justify, decide what is allocated."""
    empty = model.empty_statistics("meta")
    tensors: dict[str, Tensor] = {}
    if contents.keys() != empty.tensors().keys():
        raise StateFormatError("The statistics are not those of a model. Restore a backup.")
    for name, expected in empty.tensors().items():
        n = expected.shape[0]
        n_numbers = n * (n + 1) // 2 if name in _TRIANGLES else expected.numel()
        if len(contents[name]) != 8 * n_numbers:
            raise StateFormatError(f"The statistics hold no whole {name}. Restore a backup.")
        numbers = np.frombuffer(contents[name], dtype="<f8")
        if not np.isfinite(numbers).all():
            raise StateFormatError(f"The statistics {name} are not finite. Restore a backup.")
        tensors[name] = (
            unpacked_triangle(numbers, n)
            if name in _TRIANGLES
            else torch.from_numpy(numbers.copy()).view(expected.shape)
        )
    return Statistics(**tensors, constant=empty.constant, n_tangents=empty.n_tangents)


def _unpack_ledger(db: Database, name: str) -> Ledger:
    segments: list[Segment] = []
    for _, (place, key) in db.rows("segments"):
        if place != len(segments) or len(key) != KEY_BYTES or key in [s.key for s in segments]:
            raise StateFormatError(f"{name} holds no whole ledger. Restore a backup.")
        segments.append(Segment(key))
    for number, (place, digest, owner, label, weight, copies) in db.rows("ledger"):
        fits = len(digest) == KEY_BYTES and len(owner) in (0, KEY_BYTES) and 0 < weight < math.inf
        if not (0 <= place < len(segments) and fits and label >= 0 and copies > 0):
            raise StateFormatError(f"Row {number} of the ledger in {name} is impossible.")
        entries, entry = segments[place].rows.setdefault(digest, Counter()), Entry(label, weight, owner)
        if entry in entries:
            raise StateFormatError(f"Row {number} of the ledger in {name} is there twice.")
        entries[entry] = copies
    if not segments:
        raise StateFormatError(f"{name} holds no ledger. Restore a backup.")
    for number, (place, owner, kind, sample_id) in db.rows("ids"):
        try:
            one = _ID_KINDS[kind](sample_id)
        except (LookupError, ValueError):
            one = None
        if one is None or not 0 <= place < len(segments) or segments[place].owner(one) != owner:
            raise StateFormatError(f"Row {number} of the ids in {name} is impossible.")
        segments[place].ids[owner] = one
    return Ledger(segments)


def _unpack_features(
    rows: list[tuple[int, tuple[Any, ...]]], ledger: Ledger, model: LinearizedModel
) -> None:
    """Give a ledger the features that were kept, one for each content or none at all."""
    width, dtype = model.sizes[0] + 1, model.row_dtype
    for number, (place, digest, value) in rows:
        known = 0 <= place < len(ledger.segments) and digest in ledger.segments[place].rows
        if not known or len(value) != width * dtype.itemsize:
            raise StateFormatError(f"Row {number} of the kept features is impossible. Restore a backup.")
        features = np.frombuffer(value, dtype=dtype)
        if not np.isfinite(features).all():
            raise StateFormatError(f"Row {number} of the kept features is not finite. Restore a backup.")
        ledger.segments[place].features[digest] = features
