"""Bytes on disk that nobody has to trust: atomic writes, bounded reads, and nothing that executes."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ..exceptions import StateFormatError, UnknownKeyWarning, warn
from ..sums.memory import require

PARTIAL = ".fastntk-*.partial"
PRIVATE, PUBLIC = 0o600, 0o644
_JSON_BYTES = 32 * 2**20  # what is parsed is many times larger in memory
_DIMENSIONS = 24  # torch.isfinite takes no more
_CODE = {"trust_remote_code", "auto_map", "custom_code"}  # of other libraries' configurations
_BLOBS = ("snapshots", "blobs")  # a snapshot in the cache of the Hub's client links to its blobs
T = TypeVar("T")


def canonical(value: Any) -> bytes:
    """Return JSON that is the same for equal plain values and numpy scalars, without NaN."""
    try:
        return json.dumps(value, sort_keys=True, default=plain, allow_nan=False).encode()
    except (RecursionError, TypeError, ValueError) as error:
        raise StateFormatError(f"Expected plain values, got what JSON cannot hold: {error}.") from error


def plain(item: Any) -> Any:
    """Return a numpy scalar as a plain value, for encoders of JSON."""
    if isinstance(item, np.generic):
        return item.item()
    raise TypeError(f"{type(item).__name__}; use strings, numbers or tuples")


def checksum(*parts: bytes) -> str:
    """Return the checksum of some bytes, 32 hexadecimal digits."""
    return _checksum(parts)


def _checksum(parts: Iterable[Any]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def with_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with the checksum of its canonical JSON."""
    return {**document, "checksum": checksum(canonical(document))}


def check_checksum(document: Mapping[str, Any], name: str) -> None:
    """Raise StateFormatError unless a document has the checksum of the rest of it."""
    rest = {key: value for key, value in document.items() if key != "checksum"}
    if document.get("checksum") != checksum(canonical(rest)):
        raise StateFormatError(f"{name} was changed after it was saved. Restore a backup.")


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the checksum of named tensors: names, dtypes, shapes and values."""

    def parts() -> Iterator[Any]:
        for name, tensor in sorted(tensors.items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()

    return _checksum(parts())


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, by what follows it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def dump(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file."""
    return dump_tensors({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, metadata)


def parse_tensors(data: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, all real and finite, and its metadata.

    Raises
    ------
    StateFormatError
        If it is no safetensors file, or holds NaN, infinity or a dtype that is not written.
    """
    try:
        tensors = load_tensors(data)
    except (SafetensorError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise StateFormatError(
            f"{name} is not a complete safetensors file ({error}). Restore a backup."
        ) from error
    for key, tensor in tensors.items():
        odd = tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize == 1)
        if odd or tensor.ndim > _DIMENSIONS or not tensor.isfinite().all():
            raise StateFormatError(
                f"Expected tensor {key!r} of {name} to hold finite real numbers in at most "
                f"{_DIMENSIONS} dimensions, got others ({tensor.dtype}). Restore a backup."
            )
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], name)
    return tensors, header.get("__metadata__") or {}


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


def parse_json(data: bytes | str, name: str) -> dict[str, Any]:
    """Return a JSON object, or raise StateFormatError for anything else."""
    if len(data) > _JSON_BYTES:
        raise _too_long(name, len(data))
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise StateFormatError(f"{name} is damaged: {error}. Restore a backup.") from error


def convert(document: Mapping[str, Any], kind: type[T], name: str) -> T:
    """Return a JSON object as a struct or dataclass, whose constraints it meets.

    Raises
    ------
    StateFormatError
        If a value is missing or wrong, or a key asks for code to be run.

    Warns
    -----
    UnknownKeyWarning
        If there are keys that this version does not know; they are ignored.
    """
    try:
        found = msgspec.convert(document, kind)
        unknown = sorted(_unknown(document, msgspec.to_builtins(found)))
    except (msgspec.ValidationError, RecursionError) as error:
        raise StateFormatError(f"{name} is not valid: {error}. Restore a backup.") from error
    asked = [key for key in unknown if key.rpartition(".")[2] in _CODE]
    if asked:
        raise StateFormatError(
            f"{name} asks for code to be run ({asked[0]!r}), which this library never does. Do not use "
            "the file."
        )
    if unknown:
        warn(
            f"{name} holds {unknown}, which this version does not know and ignores. Upgrade fastntk_sk "
            "to use them.",
            UnknownKeyWarning,
        )
    return found


def _unknown(document: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a document that were not taken over, with those above them."""
    for key, value in document.items():
        if key not in known:
            yield prefix + key
        elif isinstance(value, dict) and isinstance(known[key], dict):
            yield from _unknown(value, known[key], f"{prefix}{key}.")


def read(folder: Path, name: str) -> bytes:
    """Return the content of a regular file of a folder.

    Raises
    ------
    StateFormatError
        If there is no such file, if it is a link out of the folder (into the blobs of the Hub's cache,
        a snapshot may link), a device or a pipe, or if it is JSON that is too large to be parsed.

    InsufficientMemoryError
        If it does not fit in memory; nothing was read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(_target(folder, name), flags)
    except FileNotFoundError:
        raise StateFormatError(
            f"No {name} in {str(folder)!r}: it is missing. Pass the folder that was saved, or restore "
            "a backup."
        ) from None
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise StateFormatError(f"{name} cannot be read: {error}.") from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise StateFormatError(f"Expected {name} to be a file. Restore a backup.")
    with os.fdopen(handle, "rb") as file:
        if name.endswith(".json") and found.st_size > _JSON_BYTES:
            raise _too_long(name, found.st_size)
        require(2 * found.st_size, f"Reading {name} takes", "Load it on a larger machine.")
        return file.read(found.st_size)


def _target(folder: Path, name: str) -> Path:
    """Return the path of a file, where a link of the Hub's cache leads if it is one."""
    path = folder / name
    if not path.is_symlink():
        return path
    snapshots, blobs = _BLOBS
    stores = [p.parent.resolve() / blobs for p in folder.absolute().parents if p.name == snapshots]
    target = path.resolve()
    if target.parent not in stores:
        raise StateFormatError(
            f"{name} is a link out of its folder, which is not followed. Copy the file there."
        )
    return target


def _too_long(name: str, n_bytes: int) -> StateFormatError:
    return StateFormatError(
        f"{name} has {n_bytes:,} bytes; at most {_JSON_BYTES:,} are read. It was not written by this "
        "library."
    )


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it, durably; `mode` is for a new one, less the user's umask."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=mode)
    for path in missing:
        _sync(path.parent)


def replace(folder: Path, name: str, data: bytes, mode: int = PRIVATE) -> None:
    """Put a file in place in one instant, and make it durable; the umask does not change its mode."""
    partial = folder / f".fastntk-{secrets.token_hex(8)}.partial"
    try:
        _write(partial, data, mode)
        os.replace(partial, folder / name)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(folder)


def _sync(folder: Path) -> None:
    if os.name == "posix":
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def _write(partial: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
        if os.name == "posix":
            os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
