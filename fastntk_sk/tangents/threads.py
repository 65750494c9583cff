"""What a pass sets in the process: its thread, torch's number of threads, denormals, freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

# held while torch's number of threads, which a thread takes over at its first use, is another one
_WINDOW = threading.Lock()

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_DEFAULT_MMAP = 2**25  # up to which glibc raises its own threshold; the other one is twice that
_heap_lock = threading.Lock()
_heap_users = 0


def settled_threads() -> int:
    """Return the number of torch threads of this thread's passes, and keep it from changing."""
    with _WINDOW:
        return torch.get_num_threads()


@contextmanager
def own_thread(n_threads: int | None = None) -> Iterator[Callable[..., Any]]:
    """Yield a function that calls others in one thread, which flushes denormals and has `n_threads`.

    None takes the number of the calling thread.

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


@contextmanager
def kept_heap() -> Iterator[None]:
    """Let glibc keep freed memory for the next batch, and return it to the system at the end.

    Every batch needs the same large tensors as the one before. By default glibc takes fresh pages for
    many of them, whose first touch costs a ladder's pass about 15 % of its time. Does nothing with
    another allocator, or where the environment configures glibc's (MALLOC_*, GLIBC_TUNABLES).
    """
    global _heap_users
    configured = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    libc = ctypes.CDLL(None) if sys.platform == "linux" and not configured else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    with _heap_lock:
        _heap_users += 1
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_THRESHOLD, 2**28) or libc.mallopt(_MMAP_THRESHOLD, _DEFAULT_MMAP)
    try:
        yield
    finally:
        with _heap_lock:
            _heap_users -= 1
            if not _heap_users:
                libc.mallopt(_TRIM_THRESHOLD, 2 * _DEFAULT_MMAP)
                libc.mallopt(_MMAP_THRESHOLD, _DEFAULT_MMAP)
                libc.malloc_trim(0)
