"""What a pass sets in the process: threads, denormals, freed memory, and CUDA's choice of kernels."""

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

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # M_... of glibc's malloc.h
_DEFAULT_MMAP = 2**25  # up to which glibc raises its own threshold; that of trimming is twice that
_DEFAULT_PAD = 2**17
_HEAP = 2**26  # of other threads than the main one; without such a pad they give up each that is empty
_heap_lock = threading.Lock()
_heap_users = 0

# From general to special: a precision that nobody has set follows those before it, and goes on doing so.
# torch.use_deterministic_algorithms is not among them: it raises or warns at every product unless
# CUBLAS_WORKSPACE_CONFIG was set before the process's first one, although torch gives cuBLAS a workspace
# for every stream, so that products repeat bitwise. A backward pass that adds in any order shows as
# position_gap.
_EXACT = (
    (torch.backends, "fp32_precision", "ieee"),
    (torch.backends.cudnn, "fp32_precision", "ieee"),
    (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    (torch.backends.cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    (torch.backends.cudnn.rnn, "fp32_precision", "ieee"),
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.cudnn, "deterministic", True),
)
_kernels_lock = threading.Lock()
_kernels_users = 0
_changed: list[tuple[Any, str, Any]] = []


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
def passing(device: torch.device, n_threads: int | None = None) -> Iterator[Callable[..., Any]]:
    """Yield a function that calls others where passes on a device run.

    On the CPU that is `own_thread`. Elsewhere it is the calling thread, with `exact_kernels`: whatever
    uses what they return is queued in the same stream of the device.
    """
    if device.type == "cpu":
        with own_thread(n_threads) as call:
            yield call
    else:
        with exact_kernels(device):
            yield lambda function, *args: function(*args)


@contextmanager
def exact_kernels(device: torch.device) -> Iterator[None]:
    """Let CUDA compute a row the same way in every call, in float32 where it is given that.

    TF32, kernels that are chosen by a race, and convolutions that add in any order are off. These are
    flags of the process: they come back when the last user has left. Does nothing on other devices.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.tangents.threads import exact_kernels
    >>> with exact_kernels(torch.device("cuda")):
    ...     torch.backends.cudnn.deterministic
    True
    >>> torch.backends.cudnn.deterministic
    False
    """
    global _kernels_users
    if device.type != "cuda":
        yield
        return
    with _kernels_lock:
        _kernels_users += 1
    try:
        with _kernels_lock:
            for owner, name, exact in _EXACT:
                before = getattr(owner, name)
                if before != exact:
                    _changed.append((owner, name, before))
                    setattr(owner, name, exact)
        yield
    finally:
        with _kernels_lock:
            _kernels_users -= 1
            while _changed and not _kernels_users:
                setattr(*_changed.pop())


@contextmanager
def kept_heap(device: torch.device | str = "cpu") -> Iterator[None]:
    """Let glibc keep freed memory for the next batch, and return it to the system at the end.

    Every batch needs the same large tensors as the one before. By default glibc takes fresh pages for
    many of them, whose first touch costs a ladder's pass about 15 % of its time. Does nothing on another
    device than the CPU, with another allocator, or where the environment configures glibc's (MALLOC_*,
    GLIBC_TUNABLES).
    """
    global _heap_users
    configured = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    here = sys.platform == "linux" and torch.device(device).type == "cpu"
    libc = ctypes.CDLL(None) if here and not configured else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    with _heap_lock:
        _heap_users += 1
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_TOP_PAD, _HEAP)
        libc.mallopt(_MMAP_THRESHOLD, 2**28) or libc.mallopt(_MMAP_THRESHOLD, _DEFAULT_MMAP)
    try:
        yield
    finally:
        with _heap_lock:
            _heap_users -= 1
            if not _heap_users:
                libc.mallopt(_TRIM_THRESHOLD, 2 * _DEFAULT_MMAP)
                libc.mallopt(_MMAP_THRESHOLD, _DEFAULT_MMAP)
                libc.mallopt(_TOP_PAD, _DEFAULT_PAD)
                libc.malloc_trim(0)
