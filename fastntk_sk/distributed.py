"""Ranks of a torch.distributed process group: rows are shared out, sums are added up once.

Without a process group there is one rank, and everything here is the identity. Only tensors travel:
what is not a number goes as bytes, and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .exceptions import DistributedError, StateMismatchError


class Group:
    """The ranks that learn one model together.

    Attributes
    ----------
    rank, size : int
        0 and 1 without a process group.
    """

    def __init__(self) -> None:
        self.alone = not (dist.is_available() and dist.is_initialized())
        self.rank = 0 if self.alone else dist.get_rank()
        self.size = 1 if self.alone else dist.get_world_size()

    def share(self, n: int) -> range:
        """Return this rank's part of n rows: consecutive, sizes differ by one, perhaps none."""
        bounds = [n * part // self.size for part in (self.rank, self.rank + 1)]
        return range(*bounds)

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank, by rank."""
        if self.alone:
            return [data]
        length = torch.tensor([len(data)], device=self._device())
        with _named():
            lengths = [torch.empty_like(length) for _ in range(self.size)]
            dist.all_gather(lengths, length)
            longest = max(map(int, lengths))
            padded = torch.frombuffer(bytearray(data.ljust(longest + 1)), dtype=torch.uint8)
            parts = [torch.empty_like(padded, device=length.device) for _ in range(self.size)]
            dist.all_gather(parts, padded.to(length.device))
        return [part.cpu().numpy().tobytes()[: int(n)] for part, n in zip(parts, lengths, strict=True)]

    def first(self, data: bytes) -> bytes:
        """Return the bytes of rank 0."""
        return self.gather(data)[0]

    def largest(self, number: float) -> float:
        """Return the largest of the ranks' numbers."""
        return max(float(found) for found in self.gather(repr(number).encode()))

    def wait(self) -> None:
        """Return when every rank is here."""
        self.gather(b"")

    def check_same(self, fingerprint: bytes) -> None:
        """Raise StateMismatchError on every rank unless all were called alike."""
        if len(set(self.gather(fingerprint))) > 1:
            raise StateMismatchError(
                "Expected every rank to be called with the same rows, labels and parameters, got "
                "others: the ranks share the rows out among themselves. Pass each of them all rows (as "
                "paths, or a dataset that is read on demand)."
            )

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over the ranks, in place."""
        self._each(tensors, dist.all_reduce)

    def take_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of rank 0, in place."""
        self._each(tensors, lambda tensor: dist.broadcast(tensor, 0))

    def _each(self, tensors: Iterable[Tensor], collective: Callable[[Tensor], Any]) -> None:
        if self.alone:
            return
        with _named():
            for tensor in tensors:
                moved = tensor.to(self._device())
                collective(moved)
                tensor.copy_(moved)

    @staticmethod
    def _device() -> torch.device:
        """Return where tensors must be to travel."""
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of torch.distributed, whatever the backend
        raise DistributedError(
            "A rank of the process group was lost, or did not answer within the group's timeout "
            f"({error}). Nothing was changed. Start all ranks again; with the same checkpoint_dir they "
            "go on where they were."
        ) from error
