"""Panels of a figure, and pictures in them, for all displays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import _num_samples

from .escaping import visible

_MOST_COLUMNS = 8


def panels(axes: Any, n: int, size: tuple[float, float]) -> tuple[np.ndarray, Any]:
    """Return n given axes, or those of a new figure with panels of a size in inches, and the figure."""
    if axes is None:
        check_matplotlib_support("A display")
        import matplotlib.pyplot as plt

        columns = min(n, _MOST_COLUMNS)
        lines = math.ceil(n / columns)
        figure = plt.figure(figsize=(size[0] * columns, size[1] * lines), layout="constrained")
        axes = [figure.add_subplot(lines, columns, i + 1) for i in range(n)]
    axes = np.asarray(axes, dtype=object).ravel()
    if len(axes) != n:
        raise ValueError(f"Expected {n} axes, got {len(axes)}.")
    return axes, axes[0].figure


def check_pictures(X: Any) -> None:
    """Raise ValueError for no rows, and for vectors, which cannot be drawn."""
    if getattr(X, "ndim", 3) == 2 or not _num_samples(X):
        raise ValueError(f"Expected images, got {_num_samples(X)} vectors, which cannot be drawn.")


def draw_pictures(
    axes: Any, images: Sequence[np.ndarray], texts: Sequence[str], colours: Sequence[str]
) -> tuple[np.ndarray, Any]:
    """Draw pictures, each under a text, and return the axes and the figure."""
    axes, figure = panels(axes, len(images), (1.6, 2.1))
    for ax, image, text, colour in zip(axes, images, texts, colours, strict=True):
        ax.imshow(image, cmap="gray")
        ax.axis("off")
        title = visible(text, keep="\n")
        ax.set_title(title, fontsize="small", color=colour, parse_math=False, usetex=False)
    return axes, figure
