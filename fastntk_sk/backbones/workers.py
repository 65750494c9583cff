"""Processes that read rows ahead of the passes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..exceptions import FastNTKError, WorkerError, warn


def usable_workers(n_workers: int, dataset: Any) -> int:
    """Return how many processes can read a dataset for this one: none, with a warning, where it is 0."""
    if n_workers and (reason := obstacle(dataset)):
        warn(f"Rows are read in this process, not in num_workers={n_workers} others: {reason}.")
        return 0
    return n_workers


def obstacle(dataset: Any) -> str | None:
    """Return why this process can have no others read a dataset, or None where it can."""
    known = multiprocessing.get_all_start_methods()
    method = multiprocessing.get_start_method(allow_none=True) or known[0]
    if multiprocessing.current_process().daemon:
        return "processes of a pool start no others"
    if method not in known:  # that of loky
        return "processes of joblib start no others"
    if method != "fork" and (error := _pickling_error(dataset)):
        return f"X cannot be sent to them ({error})"
    return None


def _pickling_error(dataset: Any) -> Exception | None:
    try:
        ForkingPickler(_Nowhere()).dump(dataset)
    except Exception as error:  # of whatever the dataset holds
        return error
    return None


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, text: bytes) -> int:
        return len(text)


class ReadAhead(DataLoader[Any]):
    """A DataLoader whose workers raise this library's errors as they are, torch's being others."""

    def __init__(
        self, dataset: Any, *, collate_fn: Callable[[Sequence[Any]], Any], **options: Any
    ) -> None:
        super().__init__(_Caught(dataset), collate_fn=partial(_collate, collate_fn), **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            for batch in super().__iter__():
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise WorkerError(
                "A process that reads rows ended by itself, for want of memory or because it could not "
                f"rebuild X, say: {error}. Nothing was changed. Pass num_workers=0, or fewer."
            ) from error


class _Caught(Dataset[Any]):
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
