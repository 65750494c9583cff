"""How many components to take, and whether their statistics fit, before anything is allocated."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from ..exceptions import InsufficientMemoryError
from .statistics import Statistics

LIMIT = "FASTNTK_SK_MEMORY_LIMIT"
AUTO_COMPONENTS = 4096  # of tangents, and of a ladder
_AUTO_NUMBERS = 2**29  # at most 4 GiB of float64 in the class blocks, whatever the machine
_BUFFER_NUMBERS = 2**24
_BATCHES = {  # bytes of a forward pass and of a backward one, fewest and most rows of a batch
    # glibc gives a thread of its own no tensor above 64 MiB from memory that it has kept
    "cpu": (2**28, 2**31, 8, 32),
    "mps": (2**31, 2**31, 8, 128),
    "cuda": (2**32, 2**32, 8, 512),
    "xpu": (2**32, 2**32, 8, 512),
}
_WORK_SPACE = 2**25  # of threads and libraries


def block_sizes(kernel: str, d: int, k: int, n_rows: int) -> tuple[int, int]:
    """Return how many columns all classes share, without the constant, and each class has of its own.

    `n_rows` is the number of classes, or of directions of the pseudo kernel.
    """
    return (d, k) if kernel == "full" else (d + n_rows * k, 0)


def choose_components(n_components: int | str | None, p: int, kernel: str, d: int, n_rows: int) -> int:
    """Return k, at most p: a function of the sizes only, so that a call gives one model everywhere.

    "auto" is p up to 4096: of the full kernel fewer where the class blocks would pass 4 GiB; of the
    pseudo kernel for all directions together.
    """
    if n_components is None or not p:
        return p
    if n_components != "auto":
        return min(p, int(n_components))
    if kernel == "pseudo":
        return min(p, max(1, AUTO_COMPONENTS // n_rows))
    return min(p, AUTO_COMPONENTS, max(64, _AUTO_NUMBERS // (n_rows * (d + 1))))


def choose_batch_size(activations: Sequence[int], n_trained: int, itemsize: int, device: str) -> int:
    """Return the rows of a batch: a function of the network, its input and the kind of device only.

    It is the largest power of two whose memory fits a budget, between bounds. `activations` are the
    numbers that each module gives for a row: forward, a few of them are held at a time; a backward pass
    to `n_trained` parameters holds all of them, their gradients, and Jacobians of every row.
    """
    forward, backward, fewest, most = _BATCHES.get(device.partition(":")[0], _BATCHES["cpu"])
    fitting = forward // max(1, 4 * max(activations, default=0) * itemsize)
    if n_trained:
        fitting = min(fitting, backward // ((2 * sum(activations) + 5 * n_trained) * itemsize))
    return min(most, max(fewest, 1 << fitting.bit_length() >> 1))


def rows_at_once(width: int, components: int, n_classes: int, batch_size: int) -> int:
    """Return how many rows wait until they are added to the sums together."""
    at_once = 256 if components else 512  # with class blocks a row is longer
    return max(batch_size, min(at_once, _BUFFER_NUMBERS // max(1, width, n_classes * components)))


def memory_needed(width: int, components: int, n_classes: int, batch_bytes: int, batch_size: int) -> int:
    """Estimate the peak bytes of a fit or a deletion: two sets of sums, a pass and a solve.

    `width` and `components` are what `block_sizes` returns; `batch_bytes` is the size of one class's
    Jacobian of a batch before it is projected. The activations of the backbone are not counted.
    """
    A, G, X = (width + 1) ** 2, components**2, (width + 1) * components
    rows = rows_at_once(width, components, n_classes, batch_size) + batch_size
    # batches and their concatenation in float64; a copy that is multiplied by weights, where these
    # differ, is gone before the solve
    buffer = 2 * 8 * rows * (width + 1 + n_classes * components)
    # solve_schur: the factor of A, then one X or S and the two matrices of its factorisation; without
    # class blocks S and two matrices of its factorisation or reduction, beside the one that is kept
    matrices = max(2 * A, A + G + X, A + 3 * G) if components else 4 * A
    solve = 8 * (matrices + 6 * (width + 1) * n_classes)
    # pass and solve are not at the same time, but the allocator may keep what the first has freed
    needed = buffer + 5 * batch_bytes + solve + _WORK_SPACE
    return 2 * Statistics.n_bytes(width, components, n_classes) + needed


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping, or what the environment says instead.

    FASTNTK_SK_MEMORY_LIMIT is a number of bytes; 0 and "none" stand for no limit.
    """
    limit = os.environ.get(LIMIT, "").strip().lower()
    if not limit:
        return min(psutil.virtual_memory().available, cgroup_memory())
    if limit != "none" and not limit.isdecimal():
        raise ValueError(
            f'Expected {LIMIT} to be a number of bytes, or 0 or "none" for no limit, got {limit!r}.'
        )
    return sys.maxsize if limit == "none" else int(limit) or sys.maxsize


def cgroup_memory(root: str = "/") -> int:
    """Return the bytes that this process's control groups, version 1 or 2, still allow it.

    A group, and each of its parents, allows its limit less what it uses; the kernel takes inactive file
    cache back first, so that it does not count as used. In a container the path of the group can be the
    host's: what does not exist is passed over, and the mount itself is the container's group.
    """
    allowed = sys.maxsize
    try:
        groups = Path(root, "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return allowed
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            names, mount = ("memory.max", "memory.current", "inactive_file"), "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mount = "sys/fs/cgroup/memory"
        else:
            continue
        folder = Path(path.lstrip("/"))
        for inside in (folder, *folder.parents):
            allowed = min(allowed, _allowed(Path(root, mount, inside), *names))
    return allowed


def _allowed(folder: Path, limit: str, usage: str, cache: str) -> int:
    """Return what one group still allows; version 2 writes "max" where there is no limit."""
    try:
        total, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return sys.maxsize
    reclaimable = dict(line.split() for line in lines).get(cache, 0)
    return max(0, total - used + int(reclaimable))


def require(n_bytes: int, what: str, advice: str) -> None:
    """Raise InsufficientMemoryError unless so many bytes are available.

    `what` says what needs them, with its verb, and `advice` what to do next.
    """
    available = available_memory()
    if n_bytes > available:
        raise InsufficientMemoryError(
            f"{what} {n_bytes:,} bytes ({n_bytes / 2**30:.1f} GiB) and {available:,} are available; "
            f"nothing was allocated. {advice} If more can be used, set the environment variable {LIMIT} "
            "to a number of bytes."
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
