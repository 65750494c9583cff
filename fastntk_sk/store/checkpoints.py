"""Partial sums of a long pass on disk, so that it goes on after an interruption."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor

from ..exceptions import StateFormatError, StateMismatchError
from ..publishing import files
from ..sums.statistics import Statistics

_FORMAT = 1
_SECONDS = 120.0  # between two checkpoints
_WIDTH = 32  # of a digest of the ledger, and of its key


class _Records(Struct):
    format: int
    seed: int
    n_done: int
    problem: str
    checksum: str


@dataclass(frozen=True)
class Partial:
    """What a checkpoint holds.

    Parameters
    ----------
    seed : int
        Of the interrupted fit.

    key : bytes
        Of its ledger.

    problem : str
        Fingerprint of everything that decides the sums.

    n_done : int
        Rows in the sums.

    digests : list of bytes
        Of those rows, for the ledger.

    sums : dict of str to Tensor
    """

    seed: int
    key: bytes
    problem: str
    n_done: int
    digests: list[bytes]
    sums: dict[str, Tensor]


class Checkpoint:
    """One file of a folder, replaced at one instant; private, as the statistics are.

    Parameters
    ----------
    folder : str or path-like
        Made if it does not exist.

    rank, size : int, default=0 and 1
        Every rank of a process group has a file of its own.

    Attributes
    ----------
    found : Partial or None
        What an interrupted fit left.

    Raises
    ------
    StateFormatError
        If the file is damaged.

    StateMismatchError
        If there are files of another number of ranks.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int = 0, size: int = 1) -> None:
        self.folder, self.name = Path(folder), f"checkpoint-{rank}-of-{size}.safetensors"
        self._written = time.monotonic()
        self.found = self._read() if (self.folder / self.name).exists() else None
        of_others = [
            file.name
            for file in self.folder.glob("checkpoint-*-of-*.safetensors")
            if not file.name.endswith(f"-of-{size}.safetensors")
        ]
        if of_others:
            raise StateMismatchError(
                f"Expected checkpoints of {size} rank(s) in {str(self.folder)!r}, got {of_others}. "
                "Start as many ranks as before, or delete them to start anew: they describe rows."
            )

    def resume(self, problem: str, empty: Statistics) -> tuple[Statistics, list[bytes]]:
        """Return the sums so far, and the digests of their rows, of this very problem.

        Parameters
        ----------
        problem : str

        empty : Statistics
            What is returned if nothing was found.

        Raises
        ------
        StateMismatchError
            If what was found is of another problem.
        """
        if self.found is None:
            return empty, []
        sizes, expected = (
            {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
            for tensors in (self.found.sums, empty.tensors())
        )
        if self.found.problem != problem or sizes != expected:
            raise StateMismatchError(
                f"The checkpoint in {str(self.folder)!r} is of another fit: of other rows, labels, "
                "weights or parameters, or made with other versions or on another machine, where "
                "Jacobians differ. Delete the folder to start anew, or pass another checkpoint_dir."
            )
        sums = Statistics.from_tensors(self.found.sums, empty.constant, empty.n_tangents)
        return sums, list(self.found.digests)

    def save(
        self, statistics: Statistics, *, seed: int, key: bytes, problem: str, digests: list[bytes]
    ) -> None:
        """Write the sums of the rows of these digests, if the last time was long ago."""
        if time.monotonic() - self._written < _SECONDS:
            return
        records = {"format": _FORMAT, "seed": seed, "n_done": len(digests), "problem": problem}
        tensors = statistics.tensors() | {"key": _bytes(key), "digests": _bytes(b"".join(digests))}
        metadata = {"checkpoint": files.canonical(files.with_checksum(records)).decode()}
        files.make_folder(self.folder, mode=0o700)
        files.replace(self.folder, self.name, files.dump(tensors, metadata))
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file, and the folder if nothing else is in it."""
        (self.folder / self.name).unlink(missing_ok=True)
        with suppress(OSError):  # other ranks' files, or the user's; or another rank was here first
            files.collect(self.folder, files.PARTIAL)
            self.folder.rmdir()

    def _read(self) -> Partial:
        tensors, metadata = files.parse_tensors(files.read(self.folder, self.name), self.name)
        document = files.parse_json(metadata.get("checkpoint", "{}"), self.name)
        files.check_checksum(document, self.name)
        records = files.convert(document, _Records, self.name)
        key, digests = (
            tensors.pop(name, torch.zeros(0)).numpy().tobytes() for name in ("key", "digests")
        )
        if len(key) != _WIDTH or len(digests) != _WIDTH * records.n_done:
            raise StateFormatError(f"{self.name} is no checkpoint, or damaged. Delete it to start anew.")
        parts = [digests[i : i + _WIDTH] for i in range(0, len(digests), _WIDTH)]
        return Partial(records.seed, key, records.problem, records.n_done, parts, tensors)


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
