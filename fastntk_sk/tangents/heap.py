"""What freed memory costs between batches."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_OF_GLIBC = 2**25  # where its own adaptation of the second ends; the first is twice that
_within = threading.Lock()
_passes = 0


@contextmanager
def kept_heap() -> Iterator[None]:
    """Let glibc keep freed memory for the next batch, and return it to the system at the end.

    Every batch needs the same large tensors as the one before. By default glibc returns each to the
    system and takes fresh pages for the next, whose first touch can cost more than the arithmetic on
    them. Does nothing with another allocator, or where the environment configures glibc's
    (MALLOC_*, GLIBC_TUNABLES).
    """
    global _passes
    libc = _glibc()
    if libc is None:
        yield
        return
    with _within:
        _passes += 1
        if _passes == 1:
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(_M_MMAP_THRESHOLD, 2**28) or libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_GLIBC)
    try:
        yield
    finally:
        with _within:
            _passes -= 1
            if _passes == 0:
                libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_OF_GLIBC)
                libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_OF_GLIBC)
                libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
