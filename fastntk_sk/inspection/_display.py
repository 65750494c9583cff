"""Pictures of what rows do, and the curve by which alpha was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..backbones.inputs import drawable
from ..panels import check_pictures, draw_pictures, panels
from ._issues import label_issues
from ._without import influence


@dataclass(eq=False, repr=False)
class LabelIssuesDisplay:
    r"""The learned pictures whose label is most doubtful.

    Create it with :meth:`from_estimator`, or with :meth:`from_predictions` from what
    :func:`label_issues` found.

    Parameters
    ----------
    images : list of ndarray
        Most doubtful first.

    given, suggested : ndarray of shape (n_images,)
        The label that was learned, and the one that the model without the row gives.

    self_confidence : ndarray of shape (n_images,)
        Probability of the label that was learned.

    Attributes
    ----------
    figure_ : matplotlib Figure

    axes_ : ndarray of matplotlib Axes, one for each image

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> from fastntk_sk.inspection import LabelIssuesDisplay
    >>> X = np.zeros((3, 8, 8), dtype=np.uint8)
    >>> found = {"indices": [2], "suggested": ["cat"] * 3, "self_confidence": np.array([1, 1, 0.02])}
    >>> display = LabelIssuesDisplay.from_predictions(X, ["cat", "cat", "dog"], found)
    >>> display.axes_[0].get_title()
    'dog: cat?\n0.02'
    >>> plt.close(display.figure_)
    """

    images: Sequence[np.ndarray]
    given: np.ndarray
    suggested: np.ndarray
    self_confidence: np.ndarray

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any, *, n_images: int = 40, ax: Any = None
    ) -> LabelIssuesDisplay:
        """Find and plot the most doubtful labels.

        Parameters
        ----------
        estimator, X, y
            As in :func:`label_issues`, which raises the same errors; X holds pictures.

        n_images : int, default=40
            At most.

        ax : sequence of matplotlib Axes, default=None

        Returns
        -------
        display : LabelIssuesDisplay
        """
        check_pictures(X)
        found = label_issues(estimator, X, y)
        return cls.from_predictions(X, y, found, n_images=n_images, ax=ax)

    @classmethod
    def from_predictions(
        cls, X: Any, y: Any, issues: Mapping[str, Any], *, n_images: int = 40, ax: Any = None
    ) -> LabelIssuesDisplay:
        """Plot what :func:`label_issues` found for these pictures and labels.

        Raises
        ------
        ValueError
            If X holds vectors, there is no issue, or not as many axes as images.
        """
        check_pictures(X)
        chosen = np.asarray(issues["indices"])[:n_images]
        if not len(chosen):
            raise ValueError("Expected doubtful labels, got none. There is nothing to draw.")
        return cls(
            [drawable(X[int(i)]) for i in chosen],
            np.asarray(y)[chosen],
            np.asarray(issues["suggested"])[chosen],
            issues["self_confidence"][chosen],
        ).plot(ax)

    def plot(self, ax: Any = None) -> LabelIssuesDisplay:
        """Draw the pictures on the given axes, one for each, or on a new figure."""
        parts = zip(self.given, self.suggested, self.self_confidence, strict=True)
        texts = [f"{given}: {suggested}?\n{confidence:.2f}" for given, suggested, confidence in parts]
        self.axes_, self.figure_ = draw_pictures(ax, self.images, texts, ["black"] * len(texts))
        return self


@dataclass(eq=False, repr=False)
class InfluenceDisplay:
    r"""The learned pictures that help others most, and those that do most harm.

    Create it with :meth:`from_estimator`, or with :meth:`from_predictions` from what :func:`influence`
    found.

    Parameters
    ----------
    images : list of ndarray
        Most helpful first, most harmful last.

    labels : ndarray of shape (n_images,)
        The labels that they were learned with.

    loss : ndarray of shape (n_images,)
        By how much the mean squared loss on validation rows grows without each.

    Attributes
    ----------
    figure_ : matplotlib Figure

    axes_ : ndarray of matplotlib Axes, one for each image

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> from fastntk_sk.inspection import InfluenceDisplay
    >>> X = np.zeros((3, 8, 8), dtype=np.uint8)
    >>> found = {"loss": np.array([0.5, 0.0, -0.25])}
    >>> display = InfluenceDisplay.from_predictions(X, ["cat", "cat", "dog"], found, n_images=2)
    >>> [ax.get_title() for ax in display.axes_]
    ['cat\n+0.5', 'dog\n-0.25']
    >>> plt.close(display.figure_)
    """

    images: Sequence[np.ndarray]
    labels: np.ndarray
    loss: np.ndarray

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        X_val: Any,
        y_val: Any,
        *,
        n_images: int = 16,
        ax: Any = None,
    ) -> InfluenceDisplay:
        """Compute and plot the influence of learned pictures.

        Parameters
        ----------
        estimator, X, y, X_val, y_val
            As in :func:`influence`, which raises the same errors; X holds pictures.

        n_images : int, default=16
            Half of them are the most helpful, half the most harmful.

        ax : sequence of matplotlib Axes, default=None

        Returns
        -------
        display : InfluenceDisplay
        """
        check_pictures(X)
        found = influence(estimator, X, y, X_val, y_val)
        return cls.from_predictions(X, y, found, n_images=n_images, ax=ax)

    @classmethod
    def from_predictions(
        cls, X: Any, y: Any, found: Mapping[str, Any], *, n_images: int = 16, ax: Any = None
    ) -> InfluenceDisplay:
        """Plot what :func:`influence` found for these pictures and labels, without groups.

        Raises
        ------
        ValueError
            If X holds vectors, or there are not as many axes as images.
        """
        check_pictures(X)
        order = np.argsort(-found["loss"], kind="stable")
        n_each = min(n_images, len(order)) // 2
        chosen = np.r_[order[:n_each], order[len(order) - n_each :]]
        images = [drawable(X[int(i)]) for i in chosen]
        return cls(images, np.asarray(y)[chosen], found["loss"][chosen]).plot(ax)

    def plot(self, ax: Any = None) -> InfluenceDisplay:
        """Draw the pictures on the given axes, one for each, or on a new figure."""
        parts = zip(self.labels, self.loss, strict=True)
        texts = [f"{label}\n{loss:+.2g}" for label, loss in parts]
        colours = ["tab:green" if loss >= 0 else "tab:red" for loss in self.loss]
        self.axes_, self.figure_ = draw_pictures(ax, self.images, texts, colours)
        return self


@dataclass(eq=False, repr=False)
class AlphaPathDisplay:
    """What each ridge was worth to the sums, where they chose it.

    Create it with :meth:`from_estimator`.

    Parameters
    ----------
    alpha_path : dict of float to float
        As `alpha_path_`.

    alpha : float
        The ridge in force.

    Attributes
    ----------
    figure_ : matplotlib Figure

    ax_ : matplotlib Axes

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.inspection import AlphaPathDisplay
    >>> clf = FastNTKClassifier(random_state=0).fit(*load_iris(return_X_y=True))
    >>> display = AlphaPathDisplay.from_estimator(clf)
    >>> display.alpha == clf.alpha_
    True
    >>> plt.close(display.figure_)
    """

    alpha_path: Mapping[float, float]
    alpha: float

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> AlphaPathDisplay:
        """Plot the path of a fitted estimator with its private state and alpha="auto".

        Raises
        ------
        ValueError
            If alpha was not chosen from the sums.
        """
        check_is_fitted(estimator)
        return cls(estimator.alpha_path_, estimator.alpha_).plot(ax)

    def plot(self, ax: Any = None) -> AlphaPathDisplay:
        """Draw the path on the given axes, or on a new figure."""
        if not self.alpha_path:
            raise ValueError(
                'Expected a path of alpha, got none: the sums did not choose it. Fit with alpha="auto" '
                'and trainable="ladder" or "head".'
            )
        (self.ax_,), self.figure_ = panels(ax, 1, (5, 3))
        values = list(self.alpha_path.values())
        self.ax_.plot(list(self.alpha_path), values, marker=".")
        self.ax_.axvline(self.alpha, color="tab:orange", label=f"alpha_ = {self.alpha:.2g}")
        self.ax_.set(xscale="log", xlabel="alpha", ylabel="-2 log evidence, a class")
        self.ax_.legend(fontsize="small")
        return self
