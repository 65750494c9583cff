"""Passes that learn or forget run in a thread of their own, and leave torch's settings to the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

# held while torch's number of threads, which a thread takes over at its first use, is another one
_WINDOW = threading.Lock()


def settled_threads() -> int:
    """Return the number of torch threads of this thread's passes, and keep it from changing."""
    with _WINDOW:
        return torch.get_num_threads()


@contextmanager
def own_thread(n_threads: int | None = None) -> Iterator[Callable[..., Any]]:
    """Give what calls functions in one thread that flushes denormals and has `n_threads` (None: as here).

    Torch starts the workers of a thread at its first parallel operation, and they inherit its treatment
    of denormals: set in the calling thread, it would not reach workers that exist.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.tangents.threads import own_thread
    >>> before = torch.get_num_threads()
    >>> with own_thread(before + 1) as call:
    ...     call(torch.get_num_threads) - torch.get_num_threads()
    1
    """
    n = settled_threads() if n_threads is None else n_threads
    with ThreadPoolExecutor(1, "fastntk_sk", _begin, (n,)) as executor:
        yield lambda function, *args: executor.submit(function, *args).result()


def _begin(n_threads: int) -> None:
    torch.set_flush_denormal(True)
    with _WINDOW:
        usual = torch.get_num_threads()
        if n_threads != usual:
            torch.set_num_threads(n_threads)
            # sets the number of later threads, and that of the thread which it is called in
            restoring = threading.Thread(target=torch.set_num_threads, args=(usual,))
            restoring.start()
            restoring.join()
