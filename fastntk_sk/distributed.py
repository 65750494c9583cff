"""Ranks of a torch.distributed process group that learn one model together, when they are asked to.

Only tensors travel: what is not a number goes as bytes, and nothing is unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .exceptions import DistributedError, StateMismatchError


class Ranks:
    """One process, for which every collective is the identity."""

    rank, size = 0, 1

    def share(self, n: int) -> range:
        """Return this rank's part of n rows: consecutive; sizes differ by one, and may be zero."""
        return range(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank, by rank."""
        return [data]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over the ranks, in place."""

    def take_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of rank 0, in place."""

    def first(self, data: bytes) -> bytes:
        """Return the bytes of rank 0."""
        return self.gather(data)[0]

    def agree(self, document: Any) -> Any:
        """Return a JSON document as rank 0 has it."""
        return document

    def largest(self, number: float) -> float:
        """Return the largest of the ranks' numbers."""
        found = [float(each) for each in self.gather(repr(number).encode())]
        return math.nan if any(map(math.isnan, found)) else max(found)

    def check_same(self, fingerprint: bytes) -> None:
        """Raise StateMismatchError on every rank unless all were called alike."""
        if len(set(self.gather(fingerprint))) > 1:
            raise StateMismatchError(
                "Expected every rank to be called with the same rows, labels and parameters, got "
                "others: the ranks share the rows out among themselves. Pass each of them all rows (as "
                "paths, or a dataset that is read on demand)."
            )


class _Group(Ranks):
    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")

    def gather(self, data: bytes) -> list[bytes]:
        length = torch.tensor([len(data)], device=self.device)
        with _named():
            lengths = [torch.empty_like(length) for _ in range(self.size)]
            dist.all_gather(lengths, length, self.group)
            longest = max(map(int, lengths))
            padded = torch.frombuffer(bytearray(data.ljust(longest + 1)), dtype=torch.uint8)
            parts = [torch.empty_like(padded, device=self.device) for _ in range(self.size)]
            dist.all_gather(parts, padded.to(self.device), self.group)
        return [part.cpu().numpy().tobytes()[: int(n)] for part, n in zip(parts, lengths, strict=True)]

    def agree(self, document: Any) -> Any:
        return json.loads(self.first(json.dumps(document).encode()))

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        self._each(tensors, lambda tensor: dist.all_reduce(tensor, group=self.group))

    def take_first(self, tensors: Iterable[Tensor]) -> None:
        self._each(tensors, lambda t: dist.broadcast(t, group=self.group, group_src=0))

    def _each(self, tensors: Iterable[Tensor], collective: Callable[[Tensor], Any]) -> None:
        with _named():
            for tensor in tensors:
                moved = tensor.to(self.device)
                collective(moved)
                tensor.copy_(moved)


_RANKS: ContextVar[Ranks] = ContextVar("_RANKS", default=Ranks())  # noqa: B039 - it holds no state


def ranks() -> Ranks:
    """Return the ranks that share rows in this context: this process alone unless it was asked for."""
    return _RANKS.get()


@contextmanager
def share_rows(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Share the rows of fit, partial_fit, unlearn and rebuild out among the ranks of a process group.

    Within this context every rank has to make the same calls with the same arguments. Each reads and
    learns its share of the rows; the sums are added up, and all ranks end with the same model. Outside
    of it nothing is shared, whether a process group was initialised or not.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, default=None
        The default process group by default.

    Raises
    ------
    RuntimeError
        If no process group was initialised.

    DistributedError
        From the calls within, if a rank was lost; nothing was changed.

    StateMismatchError
        From the calls within, if ranks were called with different rows or parameters.

    Examples
    --------
    Under ``torchrun --nproc-per-node 4``, after ``torch.distributed.init_process_group("gloo")``::

        with fastntk_sk.share_rows():
            clf = FastNTKClassifier("resnet18", random_state=0).fit(paths, labels)
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "Expected an initialised process group, got none. Call torch.distributed."
            "init_process_group first, and start the script with torchrun."
        )
    token = _RANKS.set(_Group(group))
    try:
        yield
    finally:
        _RANKS.reset(token)


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of torch.distributed, whatever the backend
        raise DistributedError(
            "A rank of the process group was lost, or did not answer within the group's timeout "
            f"({error}). Nothing was changed. Start all ranks again."
        ) from error
