"""Bytes on disk that nobody has to trust: atomic writes, bounded reads, and nothing that executes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ..exceptions import StateFormatError
from ..sums.memory import require

PARTIAL = r"\.fastntk-[0-9a-f]{16}\.partial"
PRIVATE, PUBLIC = 0o600, 0o644
# what is parsed is many times larger in memory, most of all where it is nested
_JSON_BYTES, _JSON_CONTAINERS, _JSON_DEPTH = 32 * 2**20, 2**18, 100
_DIMENSIONS = 32  # which numpy and torch both take
_BLOBS = ("snapshots", "blobs")  # a snapshot in the cache of the Hub's client links to its blobs


def canonical(value: Any, indent: int | None = 1) -> bytes:
    """Return JSON that is the same for equal values.

    Parameters
    ----------
    value : object
        Plain Python values and numpy scalars.

    indent : int or None, default=1
        None writes one line.

    Raises
    ------
    StateFormatError
        If JSON cannot hold it.
    """
    try:
        return _encoder(indent).encode(value).encode()
    except (RecursionError, ValueError) as error:
        raise StateFormatError(f"Expected plain values, got what JSON cannot hold: {error}.") from error


def digest(*parts: bytes) -> str:
    """Return the fingerprint of some bytes, 32 hexadecimal digits."""
    return _fingerprint(parts)


def signed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with the digest of its canonical JSON."""
    return {**document, "digest": digest(canonical(document))}


def check_signed(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a document without its digest, or raise StateFormatError where it does not fit."""
    rest = {key: value for key, value in document.items() if key != "digest"}
    if document.get("digest") != _fingerprint(part.encode() for part in _encoder(1).iterencode(rest)):
        raise StateFormatError(f"{name} was changed after it was saved. Restore a backup.")
    return rest


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the fingerprint of named tensors: names, dtypes, shapes and values."""

    def parts() -> Iterator[bytes]:
        for name, tensor in sorted(tensors.items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

    return _fingerprint(parts())


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, by what follows it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def dump(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file."""
    return dump_tensors({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, metadata)


def parse_tensors(data: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, all real and finite, and its metadata.

    Parameters
    ----------
    data : bytes

    name : str
        For messages.

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
        if odd or tensor.ndim > _DIMENSIONS:
            raise StateFormatError(
                f"Expected tensor {key!r} of {name} to hold integers or real numbers in at most "
                f"{_DIMENSIONS} dimensions, got {tensor.dtype} in {tensor.ndim}. Restore a backup."
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise StateFormatError(f"Tensor {key!r} of {name} is NaN or infinite. Restore a backup.")
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], name)
    return tensors, header.get("__metadata__") or {}


def parse_json(data: bytes | str, name: str) -> dict[str, Any]:
    """Return a JSON object, or raise StateFormatError for anything else.

    Parameters
    ----------
    data : bytes or str

    name : str
        For messages.
    """
    if len(data) > _JSON_BYTES:
        raise _too_long(name, len(data))
    if isinstance(data, str):
        containers = data.count("[") + data.count("{")
    else:
        containers = data.count(b"[") + data.count(b"{")
    if containers > _JSON_CONTAINERS:
        raise StateFormatError(
            f"{name} opens {containers:,} brackets; at most {_JSON_CONTAINERS:,} are read. It was not "
            "written by this library."
        )
    try:
        document = json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise StateFormatError(f"{name} is damaged: {error}. Restore a backup.") from error
    if not isinstance(document, dict):
        raise StateFormatError(f"Expected a JSON object in {name}, got {type(document).__name__}.")
    _check_depth(document, name)
    return document


def read(folder: Path, name: str) -> bytes:
    """Return the content of a regular file of a folder.

    Parameters
    ----------
    folder : Path

    name : str
        A plain file name.

    Raises
    ------
    StateFormatError
        If there is no such file, if it is a link out of the folder (into the blobs of the Hub's cache,
        a snapshot may link), a device or a pipe, or if it is JSON that is too large to be parsed.

    InsufficientMemoryError
        If it does not fit in memory; nothing was read.
    """
    if name != (folder / name).name or name in ("", ".", ".."):
        raise StateFormatError(f"Expected a plain file name, got {name!r}. Nothing was read.")
    try:
        handle = os.open(
            _target(folder, name),
            os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0),
        )
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


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it, durably; `mode` is for a new one, less the user's umask."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=mode)
    for path in missing:
        _sync(path.parent)


def replace(folder: Path, name: str, data: bytes, mode: int = PRIVATE) -> None:
    """Put a file in place in one instant, and make it durable.

    Parameters
    ----------
    folder : Path

    name : str

    data : bytes

    mode : int, default=0o600
        Who may read it; the user's umask does not widen or narrow it.
    """
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


def matching(folder: Path, pattern: str) -> set[str]:
    """Return the names in a folder that match a regular expression as a whole."""
    return {file.name for file in folder.iterdir() if re.fullmatch(pattern, file.name)}


def collect(folder: Path, pattern: str, keep: Iterable[str] = ()) -> None:
    """Delete files that match a pattern and are not to be kept."""
    for name in matching(folder, pattern) - set(keep):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that ask for it too; on POSIX systems only."""
    if os.name != "posix":
        yield
        return
    import fcntl

    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def check_folder(folder: Path, pattern: str) -> None:
    """Raise StateFormatError unless a folder is new, or holds only files that match a pattern."""
    others = folder.exists() or folder.is_symlink()
    if folder.is_dir():
        others = {file.name for file in folder.iterdir()} != matching(folder, pattern)
    if others:
        raise StateFormatError(
            f"Expected {str(folder)!r} to be a new or empty folder, or one that was saved before; it "
            "holds something else. Choose another folder."
        )


def _encoder(indent: int | None) -> json.JSONEncoder:
    return json.JSONEncoder(sort_keys=True, indent=indent, default=_plain)


def _plain(item: Any) -> Any:
    if isinstance(item, np.generic):
        return item.item()
    raise StateFormatError(
        f"Expected plain values in the estimator's parameters, got {type(item).__name__}. Use "
        "strings, numbers or tuples."
    )


def _fingerprint(parts: Iterable[bytes]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.hexdigest()


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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        key, times = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"it holds {key!r:.100} {times} times")
    return document


def _check_depth(document: dict[str, Any], name: str) -> None:
    """Raise StateFormatError for nesting on which recursion could end."""
    level: list[Any] = [document]
    for _ in range(_JSON_DEPTH):
        parts = (item.values() if isinstance(item, dict) else item for item in level)
        level = [part for inner in parts for part in inner if isinstance(part, (dict, list))]
    if level:
        raise StateFormatError(
            f"{name} is nested more than {_JSON_DEPTH} deep. It was not written by this library."
        )
