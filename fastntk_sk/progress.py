"""Progress bars, which nobody makes who has not asked for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], what: str, total: int | None = None, *, unit: str, show: Any
) -> Iterable[T]:
    """Return items that show a bar while they are read, or the items as they are.

    tqdm's own `disable` takes tqdm's lock all the same. Forked processes share that lock, and one that
    is killed while it holds it leaves all others waiting.
    """
    return tqdm(items, what, total, unit=unit) if show else items
