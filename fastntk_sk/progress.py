"""Progress bars, which are created only on request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], what: str, total: int | None = None, *, unit: str, show: Any
) -> Iterable[T]:
    """Return items that show a progress bar while they are read; without `show`, the items themselves.

    tqdm's own `disable=True` still acquires tqdm's lock. Forked processes share that lock, so that one
    process that is killed while it holds the lock blocks all others.
    """
    return tqdm(items, what, total, unit=unit) if show else items
