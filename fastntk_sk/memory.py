"""How many components to take, and whether their statistics fit, before anything is allocated."""

from __future__ import annotations

import psutil

from .exceptions import InsufficientMemoryError
from .statistics import Statistics

_AUTO_COMPONENTS = 4096
_AUTO_NUMBERS = 2**29  # at most 4 GiB of float64 in the class blocks, whatever the machine
BUFFER_NUMBERS = 2**24


def choose_components(n_components: int | str | None, p: int, n_classes: int, d: int) -> int:
    """Return k: a function of the sizes only, so that the same call gives the same model everywhere.

    Parameters
    ----------
    n_components : int, "auto" or None

    p, n_classes, d : int

    Returns
    -------
    k : int
        At most p. "auto" is p up to 4096, and fewer where the class blocks would pass 4 GiB.
    """
    if n_components is None:
        return p
    if n_components == "auto":
        return min(p, _AUTO_COMPONENTS, max(64, _AUTO_NUMBERS // (n_classes * (d + 1))))
    return min(p, int(n_components))


def memory_needed(d: int, k: int, n_classes: int, batch_bytes: int) -> int:
    """Estimate the peak bytes of a fit or a deletion.

    Parameters
    ----------
    d, k, n_classes : int

    batch_bytes : int
        Bytes of one class's Jacobian of a batch before it is projected.

    Returns
    -------
    n_bytes : int
        Statistics, their copy during a deletion, the solve, and the rows that wait to be added.
    """
    solve = 8 * (4 * k * k + (d + 1) * k + 3 * (d + 1) ** 2)
    buffer = 3 * 8 * max(BUFFER_NUMBERS, 32 * n_classes * k)
    return 2 * Statistics.n_bytes(d, k, n_classes) + solve + buffer + 3 * batch_bytes


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping."""
    return psutil.virtual_memory().available


def check_memory(d: int, k: int, n_classes: int, batch_bytes: int) -> None:
    """Raise InsufficientMemoryError, naming a k that fits, if the statistics would not."""
    needed, available = memory_needed(d, k, n_classes, batch_bytes), available_memory()
    if needed <= available:
        return
    fits = next(
        (
            c
            for c in (2**e for e in range(20, 3, -1))
            if c < k and memory_needed(d, c, n_classes, batch_bytes) <= available
        ),
        None,
    )
    advice = f"n_components={fits} would fit" if fits else 'only trainable="head" may fit'
    raise InsufficientMemoryError(
        f"The statistics of {n_classes} classes, {d} features and {k} components need "
        f"{needed:,} bytes ({needed / 2**30:.1f} GiB) and {available:,} are available; nothing was "
        f"allocated. {advice[0].upper()}{advice[1:]}; fewer components need less memory quadratically."
    )
