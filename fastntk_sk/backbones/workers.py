"""Processes that read rows ahead of the passes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from ..exceptions import FastNTKError, WorkerError, warn


def usable_workers(n_workers: int) -> int:
    """Return how many processes may be started here: none, with a warning, in a daemonic process."""
    if n_workers and multiprocessing.current_process().daemon:
        _warn_of_none(n_workers, "this one is daemonic, as those of multiprocessing.Pool are")
        return 0
    return n_workers


class ReadAhead(DataLoader[Any]):
    """A DataLoader that reads in this process where no other can be started.

    Errors of the library come out of a worker as they were raised there; torch makes others of them.
    """

    def __init__(
        self, dataset: Any, *, collate_fn: Callable[[Sequence[Any]], Any], **options: Any
    ) -> None:
        super().__init__(_Caught(dataset), collate_fn=partial(_collate, collate_fn), **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            batches = super().__iter__()
        except Exception as error:  # of pickling, or of a limit of the system; nothing has been read
            if not self.num_workers:
                raise
            _warn_of_none(self.num_workers, str(error))
            self.num_workers = 0
            batches = super().__iter__()
        return _checked(batches)


def _checked(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise WorkerError(
            f"A process that reads rows was ended from outside, perhaps for want of memory: {error} "
            "Nothing was changed. Pass a smaller num_workers, or num_workers=0."
        ) from error


class _Caught:
    """A dataset that returns the errors of this library instead of raising them."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        try:
            return self.dataset[i]
        except ValueError as error:
            if type(error) is ValueError or isinstance(error, FastNTKError):
                return error
            raise


def _collate(collate: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
    errors = [item for item in items if isinstance(item, Exception)]
    return errors[0] if errors else collate(items)


def _warn_of_none(n_workers: int, reason: str) -> None:
    warn(
        f"Rows are read in this process: num_workers={n_workers} asks for others, and none can be "
        f"started here ({reason}). Pass num_workers=0."
    )
