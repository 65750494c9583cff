"""How many components to take, and whether their statistics fit, before anything is allocated."""

from __future__ import annotations

import psutil

from ..exceptions import InsufficientMemoryError
from .statistics import Statistics

AUTO_COMPONENTS = 4096  # of tangents, and of a ladder
_AUTO_NUMBERS = 2**29  # at most 4 GiB of float64 in the class blocks, whatever the machine
BUFFER_NUMBERS = 2**24


def block_sizes(kernel: str, d: int, k: int, n_rows: int) -> tuple[int, int]:
    """Return how many columns all classes share, without the constant, and each class has of its own.

    Parameters
    ----------
    kernel : {"full", "pseudo"}

    d, k : int
        Number of features and of components.

    n_rows : int
        Rows of the readout: classes, or directions of the pseudo kernel.
    """
    return (d, k) if kernel == "full" else (d + n_rows * k, 0)


def choose_components(n_components: int | str | None, p: int, kernel: str, d: int, n_rows: int) -> int:
    """Return k: a function of the sizes only, so that the same call gives the same model everywhere.

    Parameters
    ----------
    n_components : int, "auto" or None

    p : int

    kernel, d, n_rows
        As in `block_sizes`.

    Returns
    -------
    k : int
        At most p. "auto" is p up to 4096: of the full kernel fewer where the class blocks would pass
        4 GiB; of the pseudo kernel for all directions together.
    """
    if n_components is None or not p:
        return p
    if n_components != "auto":
        return min(p, int(n_components))
    if kernel == "pseudo":
        return min(p, max(1, AUTO_COMPONENTS // n_rows))
    return min(p, AUTO_COMPONENTS, max(64, _AUTO_NUMBERS // (n_rows * (d + 1))))


def memory_needed(width: int, components: int, n_classes: int, batch_bytes: int, batch_size: int) -> int:
    """Estimate the peak bytes of a fit or a deletion.

    Parameters
    ----------
    width, components : int
        As `block_sizes` returns them.

    n_classes : int

    batch_bytes : int
        Bytes of one class's Jacobian of a batch before it is projected.

    batch_size : int

    Returns
    -------
    n_bytes : int
        Statistics, their copy during a deletion, the solve, and the rows that wait to be added.
    """
    solve = 8 * (4 * components**2 + (width + 1) * components + 3 * (width + 1) ** 2)
    buffer = 3 * 8 * max(BUFFER_NUMBERS, max(32, batch_size) * max(n_classes * components, width))
    return 2 * Statistics.n_bytes(width, components, n_classes) + solve + buffer + 3 * batch_bytes


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping."""
    return psutil.virtual_memory().available


def require(n_bytes: int, what: str, advice: str) -> None:
    """Raise InsufficientMemoryError unless so many bytes are available.

    Parameters
    ----------
    n_bytes : int

    what : str
        What needs them, with its verb.

    advice : str
        What to do next.
    """
    available = available_memory()
    if n_bytes > available:
        raise InsufficientMemoryError(
            f"{what} {n_bytes:,} bytes ({n_bytes / 2**30:.1f} GiB) and {available:,} are available; "
            f"nothing was allocated. {advice}"
        )


def check_memory(
    kernel: str,
    d: int,
    k: int,
    n_rows: int,
    n_classes: int,
    batch_bytes: int,
    batch_size: int,
    *,
    ladder: bool,
) -> None:
    """Raise InsufficientMemoryError, naming a number of components that fits, if statistics would not.

    With a ladder the features d can be fewer too; without tangents, k = 0, a ladder is what has fewer.
    """
    fewer_features = ladder or not k

    def needed(components: int) -> int:
        features = min(d, components) if fewer_features else d
        sizes = block_sizes(kernel, features, min(k, components), n_rows)
        return memory_needed(*sizes, n_classes, batch_bytes, batch_size)

    powers, available = (2**e for e in range(20, 3, -1)), available_memory()
    most = max(d, k) if fewer_features else k
    fits = next((c for c in powers if c < most and needed(c) <= available), None)
    advice = f"n_components={fits} would fit" if fits else 'Only trainable="head" may fit'
    if fits and not k and not ladder:
        advice = f'trainable="ladder" with {advice}'
    elif kernel == "full" and k:
        advice += ', or kernel="pseudo", whose memory does not grow with the number of classes'
    columns = f"{d} features and {k} components" if k else f"{d} features"
    require(
        needed(max(d, k)),
        f"The statistics of {n_classes} classes and {columns} need",
        f"{advice}. Fewer components need less memory quadratically.",
    )
