"""Ranks of a torch.distributed process group that learn one model together, when they are asked to.

Only tensors travel: what is not a number goes as bytes, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
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
    leads = False  # whether other ranks wait for what this one asks
    lost = False  # whether a collective has failed, so that the ranks are no longer in step

    def share(self, n: int) -> range:
        """Return this rank's part of n rows: consecutive; sizes differ by one, and may be zero."""
        return range(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank, by rank, in rank 0; elsewhere nothing."""
        return [data]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over the ranks, in place in rank 0; elsewhere nothing is left to be used."""

    def take_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of rank 0, in place."""

    def agree(self, document: Any) -> Any:
        """Return a JSON document as rank 0 has it."""
        return document

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in any rank."""
        return flag

    def check_same(self, fingerprint: bytes) -> None:
        """Raise StateMismatchError on every rank unless all were called alike."""


class _Group(Ranks):
    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")

    def gather(self, data: bytes) -> list[bytes]:
        lengths = self._everywhere(torch.tensor([len(data)]))
        longest = max(map(int, lengths))
        padded = torch.frombuffer(bytearray(data.ljust(longest + 1)), dtype=torch.uint8).to(self.device)
        parts = None if self.rank else [torch.empty_like(padded) for _ in lengths]
        with self._named():
            dist.gather(padded, parts, group=self.group, group_dst=0)
        found = zip(parts or [], lengths, strict=False)
        return [part.cpu().numpy().tobytes()[: int(n)] for part, n in found]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        self._each(tensors, lambda tensor: dist.reduce(tensor, group=self.group, group_dst=0))

    def take_first(self, tensors: Iterable[Tensor]) -> None:
        self._each(tensors, lambda tensor: dist.broadcast(tensor, group=self.group, group_src=0))

    def agree(self, document: Any) -> Any:
        told = bytearray(json.dumps(document).encode())
        length = torch.tensor(len(told))
        self.take_first([length])
        text = torch.frombuffer(told.ljust(int(length))[: int(length)], dtype=torch.uint8)
        self.take_first([text])
        return json.loads(text.numpy().tobytes())

    def any(self, flag: bool) -> bool:
        return any(map(bool, self._everywhere(torch.tensor([flag]).long())))

    def check_same(self, fingerprint: bytes) -> None:
        digest = torch.frombuffer(bytearray(hashlib.blake2b(fingerprint).digest()), dtype=torch.uint8)
        first, *others = self._everywhere(digest)
        if not all(torch.equal(first, other) for other in others):
            raise StateMismatchError(
                "Expected every rank to be called with the same model, rows, labels and parameters, got "
                "others: the ranks share the rows out among themselves. Pass each of them all rows (as "
                "paths, or a dataset that is read on demand)."
            )

    def _everywhere(self, tensor: Tensor) -> list[Tensor]:
        """Return a small tensor of every rank, in all ranks."""
        moved = tensor.to(self.device)
        found = [torch.empty_like(moved) for _ in range(self.size)]
        with self._named():
            dist.all_gather(found, moved, self.group)
        return found

    def _each(self, tensors: Iterable[Tensor], collective: Callable[[Tensor], Any]) -> None:
        with self._named():
            for tensor in tensors:
                moved = tensor.to(self.device)
                collective(moved)
                tensor.copy_(moved)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of torch.distributed, whatever the backend
            self.lost = True
            raise DistributedError(
                "A rank of the process group was lost, or did not answer within the group's timeout "
                f"({error}). Nothing was changed. Start all ranks again."
            ) from error


_RANKS: ContextVar[Ranks] = ContextVar("_RANKS", default=Ranks())  # noqa: B039 - it holds no state


def ranks() -> Ranks:
    """Return the ranks that share rows in this context: this process alone unless it was asked for."""
    return _RANKS.get()


@contextmanager
def share_rows(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Share the rows of fit, partial_fit, unlearn, rectify and rebuild out among ranks.

    Within this context every rank has to make the same calls with the same arguments. Each reads its
    share of the rows and takes the sums over it; rank 0 adds them up, solves, and hands the model out.
    Rank 0 alone ends with the private half: sums, ledger and receipts. Other ranks predict and take part
    in further calls, like an adapter of `from_pretrained`, also where they had loaded a private half.
    Outside of the context nothing is shared, whether a process group was initialised or not.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, default=None
        The default process group by default.

    Raises
    ------
    RuntimeError
        If no process group was initialised.

    DistributedError
        From the calls within, if a rank was lost, or could not read its share; nothing was changed.
        What rank 0 raises is raised in every rank.

    StateMismatchError
        From the calls within, if ranks were called with different rows or parameters.

    Examples
    --------
    Under ``torchrun --nproc-per-node 4``, after ``torch.distributed.init_process_group("gloo")``::

        with fastntk_sk.share_rows():
            clf = FastNTKClassifier("resnet18", random_state=0).fit(paths, labels)
        if torch.distributed.get_rank() == 0:
            clf.save("model.fastntk")
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
