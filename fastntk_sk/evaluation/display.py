"""Figures of deletions: accuracies and margins, the rows left over time, and changed predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils._optional_dependencies import check_pandas_support
from sklearn.utils.validation import check_is_fitted

from ..backbones.inputs import drawable
from ..escaping import drawn
from ..panels import check_pictures, draw_pictures, panels
from ._checks import check_fitted, check_same_classes, check_sets
from .metrics import accuracies, margins
from .report import named_models

_WIDEST_MARGIN = 30.0
_BINS = 30


@dataclass(eq=False, repr=False)
class UnlearningDisplay:
    """Accuracies and margins of a model before and after a deletion, and of an oracle.

    Create it with :meth:`from_estimators`. After a good deletion the panels of the unlearned model and
    of the oracle cannot be told apart.

    Parameters
    ----------
    accuracies : dict of str to dict of str to float
        By model, then by set: "retain", "forget", "test".

    margins : dict of str to dict of str to ndarray of shape (n,)
        By set, "forget" and "test", then by model; see :func:`margins`.

    Attributes
    ----------
    figure_ : matplotlib Figure

    axes_ : ndarray of matplotlib Axes
        Accuracies; margins, one panel for each model.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from fastntk_sk.evaluation import UnlearningDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> o, u, r = (GaussianNB().fit(X[k:], y[k:]) for k in (0, 15, 15))
    >>> sets = {"retain": (X[15:], y[15:]), "forget": (X[:15], y[:15]), "test": (X, y)}
    >>> display = UnlearningDisplay.from_estimators(u, original=o, oracle=r, **sets)
    >>> len(display.axes_)
    4
    >>> plt.close(display.figure_)
    """

    accuracies: Mapping[str, Mapping[str, float]]
    margins: Mapping[str, Mapping[str, np.ndarray]]

    @classmethod
    def from_estimators(
        cls,
        unlearned: Any,
        *,
        original: Any,
        oracle: Any,
        retain: Any,
        forget: Any,
        test: Any,
        ax: Any = None,
    ) -> UnlearningDisplay:
        """Evaluate models and plot them.

        Parameters
        ----------
        unlearned, original, oracle, retain, forget, test
            As in :func:`unlearning_report`, which raises the same errors.

        ax : sequence of matplotlib Axes, default=None

        Returns
        -------
        display : UnlearningDisplay
        """
        sets = check_sets(retain, forget, test)
        models = named_models(unlearned, original, oracle, sets)
        found = {
            of: {name: margins(model, *sets[of]) for name, model in models.items()}
            for of in ("forget", "test")
        }
        of_sets = {name: accuracies(model, sets) for name, model in models.items()}
        return cls(of_sets, found).plot(ax)

    def plot(self, ax: Any = None) -> UnlearningDisplay:
        """Draw all panels on the given axes, one for each panel, or on a new figure.

        Raises
        ------
        ValueError
            If there are not as many axes as panels.
        """
        axes, self.figure_ = panels(ax, 1 + len(self.accuracies), (3.2, 3.2))
        self.axes_ = axes
        frame = check_pandas_support("UnlearningDisplay").DataFrame(self.accuracies)
        frame.rename(drawn, axis="columns").plot.bar(
            ax=axes[0], title="accuracy", ylim=(0, 1), rot=0, width=0.8
        )
        everything = np.concatenate([part for of in self.margins.values() for part in of.values()])
        edges = np.histogram_bin_edges(everything.clip(-_WIDEST_MARGIN, _WIDEST_MARGIN), _BINS)
        for ax, name in zip(axes[1:], self.accuracies, strict=True):
            for of, by_model in self.margins.items():
                shown = by_model[name].clip(edges[0], edges[-1])
                ax.hist(shown, edges, density=True, alpha=0.5, label=of)
            ax.set(title=drawn(name), xlabel="margin", xlim=(edges[0], edges[-1]))
        for ax in axes:
            ax.legend(fontsize="small")
        return self


@dataclass(eq=False, repr=False)
class ForgettingTimelineDisplay:
    """How many rows a model rests on after each deletion.

    Create it with :meth:`from_estimator`. Merged sites have one line each.

    Parameters
    ----------
    receipts : list of dict
        As `receipts_`.

    Attributes
    ----------
    rows : dict of str to ndarray

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

    receipts: Sequence[Mapping[str, Any]]

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """Rows before the first deletion and after each, of shape (n_deletions + 1,), by chain."""
        found: dict[str, list[int]] = {}
        for receipt in self.receipts:
            left = receipt["n_samples_learned"]
            gone = receipt["n_rows"] - receipt["n_rectified"]
            found.setdefault(receipt["chain"], [left + gone]).append(left)
        return {chain: np.array(rows) for chain, rows in found.items()}

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> ForgettingTimelineDisplay:
        """Plot the receipts of a fitted estimator that has its private state."""
        check_is_fitted(estimator)
        return cls(estimator.receipts_).plot(ax)

    def plot(self, ax: Any = None) -> ForgettingTimelineDisplay:
        """Draw the timeline on the given axes, or on a new figure.

        Raises
        ------
        ValueError
            If there is no receipt.
        """
        if not self.receipts:
            raise ValueError("Expected at least one receipt, got none. Forget something first.")
        (self.ax_,), self.figure_ = panels(ax, 1, (7, 3))
        labels = {True: "exact for the linearised model", False: "approximate: see the receipt"}
        for chain, rows in self.rows.items():
            self.ax_.step(np.arange(len(rows)), rows, where="post", color="tab:blue")
            receipts = [receipt for receipt in self.receipts if receipt["chain"] == chain]
            exact = np.array([receipt["exactness"]["exact"] for receipt in receipts])
            for kind, colour in ((True, "tab:green"), (False, "tab:orange")):
                places = 1 + np.flatnonzero(exact == kind)
                # each label once: matplotlib leaves None out of the legend
                label = labels.pop(kind, None) if len(places) else None
                self.ax_.plot(places, rows[places], "o", color=colour, label=label)
        self.ax_.set(xlabel="deletion", ylabel="rows that the model rests on")
        self.ax_.xaxis.get_major_locator().set_params(integer=True)
        self.ax_.legend(fontsize="small")
        return self


@dataclass(eq=False, repr=False)
class ChangedPredictionsDisplay:
    """The images whose predictions a deletion changed most.

    Create it with :meth:`from_estimators`.

    Parameters
    ----------
    images : list of ndarray
        Most changed first.

    changes : ndarray of shape (n,)
        Total variation between the class probabilities before and after, in [0, 1].

    before, after : sequence of str
        Predicted class of each image.

    Attributes
    ----------
    figure_ : matplotlib Figure

    axes_ : ndarray of matplotlib Axes, one for each image

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import numpy as np
    >>> from sklearn.dummy import DummyClassifier
    >>> from fastntk_sk.evaluation import ChangedPredictionsDisplay
    >>> X = np.zeros((4, 32, 32), dtype=np.uint8)
    >>> before, after = (DummyClassifier().fit(X, y) for y in ([0, 0, 0, 1], [0, 0, 1, 1]))
    >>> display = ChangedPredictionsDisplay.from_estimators(before, after, X)
    >>> display.changes.tolist()
    [0.25, 0.25, 0.25, 0.25]
    >>> plt.close(display.figure_)
    """

    images: Sequence[np.ndarray]
    changes: np.ndarray
    before: Sequence[str]
    after: Sequence[str]

    @classmethod
    def from_estimators(
        cls, before: Any, after: Any, X: Any, *, n_images: int = 8, ax: Any = None
    ) -> ChangedPredictionsDisplay:
        r"""Find and plot the images whose class probabilities changed most.

        .. math:: \tfrac12 \sum_c |p_c^{before}(x) - p_c^{after}(x)|

        Parameters
        ----------
        before, after : classifier or Module
            As in :func:`accuracy_gaps`, of the same classes.

        X : array-like
            Images, as the estimators take them.

        n_images : int, default=8

        ax : sequence of matplotlib Axes, default=None

        Returns
        -------
        display : ChangedPredictionsDisplay

        Raises
        ------
        ValueError
            If the classes differ, or X holds vectors.
        """
        check_pictures(X)
        before, after = (check_fitted(model, X) for model in (before, after))
        check_same_classes(before, after)
        p, q = before.predict_proba(X), after.predict_proba(X)
        changes = np.abs(p - q).sum(1) / 2
        chosen = np.argsort(-changes, kind="stable")[:n_images]
        names = before.classes_.astype(str)
        return cls(
            [drawable(X[i]) for i in chosen],
            changes[chosen],
            names[p[chosen].argmax(1)],
            names[q[chosen].argmax(1)],
        ).plot(ax)

    def plot(self, ax: Any = None) -> ChangedPredictionsDisplay:
        """Draw the images on the given axes, one for each image, or on a new figure.

        Raises
        ------
        ValueError
            If there are not as many axes as images.
        """
        pairs = list(zip(self.before, self.after, strict=True))
        names = [old if old == new else f"{old} → {new}" for old, new in pairs]
        texts = [f"{name}\n{change:.2f}" for name, change in zip(names, self.changes, strict=True)]
        colours = ["black" if old == new else "tab:red" for old, new in pairs]
        self.axes_, self.figure_ = draw_pictures(ax, self.images, texts, colours)
        return self
