"""Pictures of a life with deletions: the rows left over time, and the pictures that are seen anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..backbones.inputs import drawable
from ._checks import optional


class ForgettingTimelineDisplay:
    """How many rows a model has rested on, deletion by deletion.

    Make it with :meth:`from_estimator`. Of merged sites, each has its own line.

    Parameters
    ----------
    receipts : list of dict
        As `receipts_`.

    Attributes
    ----------
    figure_ : matplotlib Figure

    ax_ : matplotlib Axes

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.evaluation import ForgettingTimelineDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y).unlearn(X[:5]).unlearn(X[5:6])
    >>> display = ForgettingTimelineDisplay.from_estimator(clf)
    >>> [rows.tolist() for rows in display.rows.values()]
    [[150, 145, 144]]
    >>> plt.close(display.figure_)
    """

    def __init__(self, receipts: Sequence[Mapping[str, Any]]) -> None:
        self.receipts = receipts

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """Rows before the first deletion and after each, of shape (n_deletions + 1,), by chain."""
        found: dict[str, list[int]] = {}
        for receipt in self.receipts:
            left, gone = receipt["n_samples_learned"], receipt["n_rows"]
            found.setdefault(receipt["chain"], [left + gone]).append(left)
        return {chain: np.array(rows) for chain, rows in found.items()}

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> ForgettingTimelineDisplay:
        """Plot the receipts of an estimator.

        Parameters
        ----------
        estimator : FastNTKClassifier
            Fitted, with its private state.

        ax : matplotlib Axes, default=None

        Returns
        -------
        display : ForgettingTimelineDisplay

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.

        ValueError
            If nothing was forgotten.
        """
        check_is_fitted(estimator)
        return cls(estimator.receipts_).plot(ax)

    def plot(self, ax: Any = None) -> ForgettingTimelineDisplay:
        """Draw the timeline.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : ForgettingTimelineDisplay

        Raises
        ------
        ValueError
            If there is no receipt.
        """
        if not self.receipts:
            raise ValueError("Expected at least one receipt, got none. Forget something first.")
        if ax is None:
            plt = optional("matplotlib.pyplot")
            _, ax = plt.subplots(figsize=(7, 3), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        few = len(self.receipts) <= 12
        labelled: set[bool] = set()
        for chain, rows in self.rows.items():
            receipts = [receipt for receipt in self.receipts if receipt["chain"] == chain]
            places = np.arange(len(rows))
            ax.step(places, rows, where="post", color="tab:blue")
            for place, left, receipt in zip(places[1:], rows[1:], receipts, strict=True):
                exact = receipt["exactness"]["exact"]
                label = "exact for the linearised model" if exact else "approximate: see the receipt"
                ax.plot(
                    place,
                    left,
                    "o" if few else ".",
                    color="tab:green" if exact else "tab:orange",
                    label=None if exact in labelled else label,
                )
                labelled.add(exact)
                if few:
                    text, offset = f"-{receipt['n_rows']:,}", (6, 6)
                    ax.annotate(
                        text, (place, left), textcoords="offset points", xytext=offset, fontsize="small"
                    )
        if few and len(self.rows) == 1:
            days = [
                datetime.fromisoformat(receipt["time"]).strftime("%d %b\n%H:%M:%S")
                for receipt in self.receipts
            ]
            ax.set_xticks(range(len(days) + 1), ["learned", *days], fontsize="small")
        ax.set(xlabel="deletion", ylabel="rows that the model rests on")
        ax.margins(y=0.2)
        ax.legend(fontsize="small")
        return self


class ChangedPredictionsDisplay:
    """The pictures that a deletion made a model see anew, most changed first.

    Make it with :meth:`from_estimators`.

    Parameters
    ----------
    images : list of ndarray
        Most changed first.

    changes : ndarray of shape (n,)
        Total variation between the class probabilities before and after, in [0, 1].

    before, after : list of str
        What each picture is taken for.

    Attributes
    ----------
    figure_ : matplotlib Figure

    axes_ : ndarray of matplotlib Axes, one a picture

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> from copy import deepcopy
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.evaluation import ChangedPredictionsDisplay
    >>> X = np.random.default_rng(0).integers(0, 256, size=(12, 32, 32), dtype=np.uint8)
    >>> before = FastNTKClassifier("resnet18", pretrained=False, image_size=32, n_components=8)
    >>> before = before.fit(X, np.arange(12) % 2)
    >>> after = deepcopy(before).unlearn(X[:2])
    >>> display = ChangedPredictionsDisplay.from_estimators(before, after, X, n_images=4)
    >>> len(display.axes_)
    4
    >>> plt.close(display.figure_)
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        changes: np.ndarray,
        before: Sequence[str],
        after: Sequence[str],
    ) -> None:
        self.images = images
        self.changes = changes
        self.before = before
        self.after = after

    @classmethod
    def from_estimators(
        cls, before: Any, after: Any, X: Any, *, n_images: int = 8, axes: Any = None
    ) -> ChangedPredictionsDisplay:
        r"""Find and plot the rows whose class probabilities moved most.

        .. math:: \tfrac12 \sum_c |p_c^{before}(x) - p_c^{after}(x)|

        Parameters
        ----------
        before, after : estimator
            With `predict_proba`, of the same classes.

        X : array-like
            Images, as the estimators take them.

        n_images : int, default=8

        axes : sequence of matplotlib Axes, default=None
            As in :meth:`plot`.

        Returns
        -------
        display : ChangedPredictionsDisplay

        Raises
        ------
        ValueError
            If the classes differ, or X holds vectors.
        """
        if not np.array_equal(before.classes_, after.classes_):
            raise ValueError(
                f"Expected both models to have the same classes, got {before.classes_.tolist()} and "
                f"{after.classes_.tolist()}."
            )
        if getattr(X, "ndim", 3) == 2 or not len(X):
            raise ValueError(f"Expected images, got {len(X)} vectors, which have no picture.")
        p, q = before.predict_proba(X), after.predict_proba(X)
        changes = np.abs(p - q).sum(1) / 2
        chosen = np.argsort(-changes, kind="stable")[:n_images]
        names = before.classes_.astype(str)
        return cls(
            [drawable(X[i]) for i in chosen],
            changes[chosen],
            names[p[chosen].argmax(1)].tolist(),
            names[q[chosen].argmax(1)].tolist(),
        ).plot(axes)

    def plot(self, axes: Any = None) -> ChangedPredictionsDisplay:
        """Draw the pictures.

        Parameters
        ----------
        axes : sequence of matplotlib Axes, default=None
            One a picture; None makes a new figure.

        Returns
        -------
        display : ChangedPredictionsDisplay

        Raises
        ------
        ValueError
            If there are not as many axes as pictures.
        """
        n = len(self.images)
        if axes is None:
            plt = optional("matplotlib.pyplot")
            columns = min(n, 8)
            lines = -(-n // columns)
            size = 1.6 * columns, 2.1 * lines
            _, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
            for ax in axes.ravel()[n:]:
                ax.remove()
            axes = axes.ravel()[:n]
        axes = np.asarray(axes, dtype=object).ravel()
        if len(axes) != n:
            raise ValueError(f"Expected {n} axes, one a picture, got {len(axes)}.")
        self.axes_, self.figure_ = axes, axes[0].figure
        for i, ax in enumerate(axes):
            ax.imshow(self.images[i], cmap="gray")
            ax.axis("off")
            same = self.before[i] == self.after[i]
            names = self.before[i] if same else f"{self.before[i]} → {self.after[i]}"
            colour = "black" if same else "tab:red"
            ax.set_title(f"{names}\n{self.changes[i]:.2f}", fontsize="small", color=colour)
        return self
