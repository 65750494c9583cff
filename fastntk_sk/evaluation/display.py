"""Pictures of a deletion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._checks import check_sets, optional
from .metrics import margins
from .report import named_models

_SETS = ("retain", "forget", "test")
_WIDEST_MARGIN = 30.0
_BINS = 30


class UnlearningDisplay:
    """Accuracies, margins and relearning of a model before and after a deletion, and of an oracle.

    Make it with :meth:`from_estimators`. After a good deletion the panels of the unlearned model and
    of the oracle cannot be told apart.

    Parameters
    ----------
    accuracies : dict of str to dict of str to float
        By model, then by set: "retain", "forget", "test".

    forget_margins, test_margins : dict of str to ndarray of shape (n,)
        By model; see :func:`margins`.

    relearn_losses : dict of str to array-like of shape (n_steps,), default=None
        Loss on the forget set after each step of relearning, by model.

    Attributes
    ----------
    figure_ : matplotlib Figure
        After :meth:`plot`.

    axes_ : ndarray of matplotlib Axes
        Accuracies; margins, one panel a model; relearn curves, if given.

    Examples
    --------
    >>> from copy import deepcopy
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.evaluation import UnlearningDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> forget, retain, test = (X[::5], y[::5]), (X[1::5], y[1::5]), (X[2::5], y[2::5])
    >>> original = FastNTKClassifier(random_state=0).fit(*retain).partial_fit(*forget)
    >>> display = UnlearningDisplay.from_estimators(
    ...     deepcopy(original).unlearn(*forget), original=original,
    ...     oracle=FastNTKClassifier(random_state=0).fit(*retain),
    ...     retain=retain, forget=forget, test=test,
    ... )
    >>> len(display.axes_)
    4
    >>> plt.close(display.figure_)
    """

    def __init__(
        self,
        accuracies: Mapping[str, Mapping[str, float]],
        forget_margins: Mapping[str, np.ndarray],
        test_margins: Mapping[str, np.ndarray],
        relearn_losses: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.accuracies = accuracies
        self.forget_margins = forget_margins
        self.test_margins = test_margins
        self.relearn_losses = relearn_losses

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
        relearn_losses: Mapping[str, Sequence[float]] | None = None,
        ax: Any = None,
    ) -> UnlearningDisplay:
        """Evaluate models and plot them.

        Parameters
        ----------
        unlearned : estimator or dict of str to estimator

        original : estimator
            The model before the deletion.

        oracle : estimator
            Retrained on the retain set.

        retain, forget, test : pair (X, y)

        relearn_losses : dict of str to array-like of shape (n_steps,), default=None
            As in the class.

        ax : sequence of matplotlib Axes, default=None
            As in :meth:`plot`.

        Returns
        -------
        display : UnlearningDisplay

        Raises
        ------
        MissingOracleError
            If `oracle` is None.

        NotFittedError
            If a model is not fitted.

        ValueError
            As in :func:`unlearning_report`.
        """
        models = named_models(unlearned, original, oracle)
        sets = check_sets(retain, forget, test)
        accuracies = {
            name: {of: float(np.mean(model.predict(X) == y)) for of, (X, y) in sets.items()}
            for name, model in models.items()
        }
        of_forget, of_test = (
            {name: margins(model, *sets[of]) for name, model in models.items()}
            for of in ("forget", "test")
        )
        return cls(accuracies, of_forget, of_test, relearn_losses).plot(ax)

    def plot(self, ax: Any = None) -> UnlearningDisplay:
        """Draw all panels.

        Parameters
        ----------
        ax : sequence of matplotlib Axes, default=None
            One a panel; None makes a new figure.

        Returns
        -------
        display : UnlearningDisplay

        Raises
        ------
        ValueError
            If there are not as many axes as panels.

        ImportError
            If matplotlib is not installed.
        """
        n_panels = 1 + len(self.accuracies) + (self.relearn_losses is not None)
        if ax is None:
            plt = optional("matplotlib.pyplot")
            _, ax = plt.subplots(1, n_panels, figsize=(3.2 * n_panels, 3.2), layout="constrained")
        axes = np.asarray(ax, dtype=object).ravel()
        if len(axes) != n_panels:
            raise ValueError(f"Expected {n_panels} axes, one a panel, got {len(axes)}.")
        self.axes_ = axes
        self.figure_ = axes[0].figure
        self._plot_accuracies(axes[0])
        self._plot_margins(axes[1 : 1 + len(self.accuracies)])
        if self.relearn_losses is not None:
            self._plot_relearning(axes[-1], self.relearn_losses)
        return self

    def _plot_accuracies(self, ax: Any) -> None:
        width = 0.8 / len(self.accuracies)
        places = np.arange(len(_SETS))
        for i, (name, accuracy) in enumerate(self.accuracies.items()):
            heights = [accuracy[of] for of in _SETS]
            ax.bar(places + (i - (len(self.accuracies) - 1) / 2) * width, heights, width, label=name)
        ax.set(title="accuracy", ylim=(0, 1), xticks=places, xticklabels=_SETS)
        ax.legend(fontsize="small")

    def _plot_margins(self, axes: np.ndarray) -> None:
        kinds = {"forget": self.forget_margins, "test": self.test_margins}
        clipped = {
            kind: {name: np.clip(m, -_WIDEST_MARGIN, _WIDEST_MARGIN) for name, m in of_kind.items()}
            for kind, of_kind in kinds.items()
        }
        everything = np.concatenate([m for of_kind in clipped.values() for m in of_kind.values()])
        edges = np.histogram_bin_edges(everything, _BINS)
        for ax, name in zip(axes, self.accuracies, strict=True):
            for kind, of_kind in clipped.items():
                ax.hist(of_kind[name], edges, density=True, alpha=0.5, label=kind)
            ax.set(title=name, xlabel="margin", xlim=(edges[0], edges[-1]))
            ax.legend(fontsize="small")

    @staticmethod
    def _plot_relearning(ax: Any, losses: Mapping[str, Sequence[float]]) -> None:
        for name, curve in losses.items():
            ax.plot(np.arange(len(curve)), curve, label=name)
        ax.set(title="relearning", xlabel="step", ylabel="loss on the forget set")
        ax.legend(fontsize="small")
