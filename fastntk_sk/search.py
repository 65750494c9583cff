"""Choosing the ridge and the weight of the tangents by cross-validation, at the price of one pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from numbers import Real
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils import column_or_1d
from sklearn.utils.validation import _check_sample_weight

from .backbones.inputs import content
from .classifier import FastNTKClassifier
from .fitting import Prepared, prepare
from .prediction import GivenScoresMixin
from .progress import progress
from .sums.memory import require
from .sums.ridge import at_least, number, solve_each
from .sums.solvers import Solution
from .sums.statistics import Statistics
from .tangents.model import check_finite
from .validation import check_parameters

_SCALES = (0.25, 1.0, 4.0)


class FastNTKClassifierCV(BaseSearchCV):
    """A grid search over `alpha` and `tangent_scale` that takes every Jacobian once.

    Neither parameter changes the Jacobians, and the fit needs the rows only through sums: the sums of a
    fold's training rows are those of all rows less those of the fold, and each candidate is one solve.
    The result is that of :class:`~sklearn.model_selection.GridSearchCV` over the two parameters with an
    integer `random_state`, whose fits all take their own passes.

    Parameters
    ----------
    estimator : FastNTKClassifier
        With anchor="pretrained": a fine-tuned anchor has seen the rows that a fold holds out.

    alphas : sequence of float or "auto", default=("auto", 0.03, 0.1, 0.3, 1.0)
        Ridges to try.

    tangent_scales : sequence of float, default=None
        Weights of the tangents to try; 0 is a linear probe. None is (0.25, 1.0, 4.0), or the
        estimator's own where there are no tangents (a ladder or the head alone).

    cv : int, splitter or iterable, default=None
        As in :class:`~sklearn.model_selection.GridSearchCV`; what a fold does not hold out, it must
        learn.

    scoring : str or callable, default=None
        As there; None is the accuracy.

    Attributes
    ----------
    best_estimator_ : FastNTKClassifier
        Fitted on all rows with the best parameters; it can forget: ``unlearn(search, X_forget)``, whose
        receipt says that the choice of hyper-parameters has seen the rows.

    best_params_ : dict
        "alpha" and "tangent_scale".

    best_score_ : float
        Mean score of the best candidate on held-out rows.

    best_index_ : int
        Its place in `cv_results_`.

    cv_results_ : dict of str to array
        "params", and of each candidate "param_alpha", "param_tangent_scale", "split0_test_score" and so
        on, "mean_test_score", "std_test_score", "rank_test_score".

    n_splits_ : int
        Number of folds.

    scorer_ : callable

    See Also
    --------
    FastNTKClassifier : The estimator that is tuned.

    Notes
    -----
    Sample weights count in the scores too, where the scorer takes them. Features and Jacobians of all
    rows are kept until the end: n (d + C k) numbers, or n (d + r k) with kernel="pseudo".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV
    >>> X, y = load_iris(return_X_y=True)
    >>> search = FastNTKClassifierCV(FastNTKClassifier(random_state=0), alphas=(0.01, 1.0)).fit(X, y)
    >>> search.best_params_
    {'alpha': 0.01, 'tangent_scale': 1.0}
    """

    refit = True
    multimetric_ = False
    error_score = "raise"
    n_jobs = None
    verbose = 0
    return_train_score = False

    def __init__(
        self,
        estimator: FastNTKClassifier,
        *,
        alphas: Sequence[float | str] = ("auto", 0.03, 0.1, 0.3, 1.0),
        tangent_scales: Sequence[float] | None = None,
        cv: Any = None,
        scoring: Any = None,
    ) -> None:
        self.estimator = estimator
        self.alphas = alphas
        self.tangent_scales = tangent_scales
        self.cv = cv
        self.scoring = scoring

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, sample_ids: Any = None
    ) -> FastNTKClassifierCV:
        """Take one pass, score the candidates on held-out rows, and fit the best one on all rows.

        Parameters
        ----------
        X, y, sample_weight, sample_ids
            As in :meth:`FastNTKClassifier.fit`.

        Returns
        -------
        self : FastNTKClassifierCV

        Raises
        ------
        TypeError, ValueError
            If the estimator is not a `FastNTKClassifier` at the pretrained anchor, a candidate is not
            valid, or a fold neither learns nor holds out some rows.

        InsufficientMemoryError
            If the Jacobians of all rows do not fit.
        """
        if not isinstance(self.estimator, FastNTKClassifier):
            raise TypeError(
                f"Expected a FastNTKClassifier as estimator, got {type(self.estimator).__name__}. Use "
                "GridSearchCV for others, pipelines among them."
            )
        best = clone(self.estimator)
        alphas = _listed(self.alphas)
        scales = _listed(_SCALES if self.tangent_scales is None else self.tangent_scales)
        if not alphas or not scales:
            raise ValueError("Expected alphas and tangent_scales to hold one value at least, got none.")
        for alpha, scale in product(alphas, scales):
            check_parameters(best.set_params(alpha=alpha, tangent_scale=scale))
        alphas = [alpha if alpha == "auto" else float(alpha) for alpha in alphas]
        scales = [float(scale) for scale in scales]
        best.set_params(alpha=min(alphas, key=at_least))  # decides which weights are too heavy
        if best.anchor == "finetuned":
            raise ValueError(
                'Expected anchor="pretrained", got "finetuned", which has seen the rows that a fold '
                "holds out. Use GridSearchCV for it."
            )
        if not (self.scoring is None or isinstance(self.scoring, str) or callable(self.scoring)):
            raise TypeError(
                "Expected scoring to be a str or a callable, got "
                f"{type(self.scoring).__name__}. Use GridSearchCV for several scores."
            )
        prepared = prepare(best, X, y, None, sample_weight, sample_ids)
        model = prepared.state.model
        if self.tangent_scales is None and not model.projection.k:
            scales = [float(self.estimator.tangent_scale)]
        candidates = [{"alpha": a, "tangent_scale": s} for a, s in product(alphas, scales)]
        names, labels = prepared.classes, prepared.labels
        folds = _folds(self.cv, y, sample_weight)
        scorer = check_scoring(_Scored(names), scoring=self.scoring)
        # as in a grid search of scikit-learn 1.8 and later
        weighted = sample_weight is not None and getattr(scorer, "_accept_sample_weight", bool)()
        rows = _TangentRows(best, prepared)
        whole = model.empty_statistics()
        rows.add(whole, np.arange(len(labels)))
        scores = np.empty((len(folds), len(candidates)))
        for f, fold in enumerate(progress(folds, "folds", unit="fold", show=best.verbose)):
            rest = whole.copy()
            rows.add(rest, fold, -1.0)
            weights = {"sample_weight": prepared.weights[fold]} if weighted else {}
            for c, predictor in enumerate(rows.predictors(rest, fold, alphas, scales)):
                scores[f, c] = scorer(predictor, fold, names[labels[fold]], **weights)
        compared = _compared(candidates, scores)
        chosen = compared["best_params_"]
        state = prepared.state.resettled(number(chosen["alpha"]), chosen["tangent_scale"])
        state = state.grown(whole, rows.digests, labels, prepared.weights, prepared.ids)
        self.best_estimator_ = best.set_params(**chosen)._commit(state, names)
        self.scorer_ = scorer
        for name, value in compared.items():
            setattr(self, name, value)
        return self


def _listed(values: Any) -> list[Any]:
    """Return one value, or several, as a list."""
    return [values] if isinstance(values, (str, Real)) else list(values)


def _column(values: list[float | str]) -> np.ndarray:
    """Return the values of a parameter as an array in which numbers stay numbers."""
    return np.array(values, dtype=object if "auto" in values else np.float64)


def _compared(candidates: list[dict[str, Any]], scores: np.ndarray) -> dict[str, Any]:
    """Return the attributes that tell how the candidates compare; what has no score ranks last."""
    means = scores.mean(0)
    if np.isnan(means).any():
        warnings.warn(
            f"The scores of {np.isnan(means).sum()} candidates are not finite; they rank last.",
            UserWarning,
            stacklevel=3,
        )
    ranks = rankdata(np.where(np.isnan(means), np.inf, -means), method="min").astype(np.int32)
    best = int(ranks.argmin())
    return {
        "n_splits_": len(scores),
        "cv_results_": {
            **{f"param_{name}": _column([c[name] for c in candidates]) for name in candidates[0]},
            "params": candidates,
            **{f"split{i}_test_score": row for i, row in enumerate(scores)},
            "mean_test_score": means,
            "std_test_score": scores.std(0),
            "rank_test_score": ranks,
        },
        "best_index_": best,
        "best_params_": candidates[best],
        "best_score_": float(means[best]),
    }


class _TangentRows:
    """Features and Jacobians of all rows of a fit, held in memory.

    Parameters
    ----------
    estimator : FastNTKClassifier
        For progress bars.

    prepared : Prepared
    """

    def __init__(self, estimator: FastNTKClassifier, prepared: Prepared) -> None:
        self.prepared, self.digests = prepared, list[bytes]()
        self.sharpness = prepared.state.adapter.sharpness
        state, rows = prepared.state, prepared.rows
        model = state.model
        width, components = model.sizes
        numbers = len(rows) * (width + 1 + model.settings.n_classes * components)
        require(
            numbers * model.directions.itemsize + model.memory_needed(),
            f"Statistics, and features and Jacobians of {len(rows):,} rows, need",
            'Take fewer components, kernel="pseudo" or fewer rows, or GridSearchCV, which holds none.',
        )

        def noted() -> Iterator[np.ndarray]:
            for row in estimator._progress(rows, "learning", len(rows)):
                self.digests.append(state.ledger.digest(content(row)))
                yield row

        start = 0
        for batch in model.batches(noted()):
            shared, own = model.tangents(batch)
            check_finite(shared, own, start)
            if not start:  # at full size, so that no second copy is ever made
                self.shared = shared.new_empty(len(rows), *shared.shape[1:])
                self.own = own.new_empty(len(rows), *own.shape[1:])
            stop = start + len(shared)
            self.shared[start:stop], self.own[start:stop] = shared, own
            start = stop

    def add(self, statistics: Statistics, rows: np.ndarray, sign: float = 1.0) -> None:
        """Add the outer products of some rows, or subtract them."""
        labels, weights = map(torch.from_numpy, (self.prepared.labels, self.prepared.weights))
        for chosen in torch.from_numpy(rows).split(256):
            parts = self.shared[chosen], self.own[chosen], labels[chosen], sign * weights[chosen]
            statistics.add(*parts)

    def predictors(
        self, rest: Statistics, fold: np.ndarray, alphas: list[float | str], scales: list[float]
    ) -> Iterator[Any]:
        """Yield what predicts a fold's rows after learning the others, for every alpha and scale."""
        state, labels = self.prepared.state, self.prepared.labels
        counts = np.bincount(np.delete(labels, fold), minlength=state.model.settings.n_classes)
        ridges, target_scale = [number(alpha) for alpha in alphas], state.settings.target_scale
        by_scale = [
            solve_each(rest, ridges, tangent_scale=scale, target_scale=target_scale) for scale in scales
        ]
        for solutions in zip(*by_scale, strict=True):
            for scale, solution in zip(scales, solutions, strict=True):
                scores = self._scores(fold, solution, scale)
                scores[:, counts == 0] = -np.inf
                yield _Scored(self.prepared.classes, scores, self.sharpness)

    def _scores(self, fold: np.ndarray, solution: Solution, scale: float) -> np.ndarray:
        W, z = solution.W.to(self.shared.dtype), solution.z.to(self.own.dtype)
        return np.concatenate(
            [
                (self.shared[rows] @ W.T + scale**0.5 * (self.own[rows] @ z)).double().numpy()
                for rows in torch.from_numpy(fold).split(256)
            ]
        )


class _Scored(GivenScoresMixin, ClassifierMixin, BaseEstimator):
    """A fitted classifier whose scores of some rows are known; what it is asked about is those."""

    def __init__(
        self, classes: np.ndarray, scores: np.ndarray | None = None, sharpness: float = 1.0
    ) -> None:
        self.classes = classes
        self.scores = scores
        self.sharpness = sharpness

    def fit(self, X: Any, y: Any) -> _Scored:
        return self

    def _scores(self, X: Any) -> np.ndarray:
        assert self.scores is not None
        return self.scores


def _folds(cv: Any, y: Any, sample_weight: Any) -> list[np.ndarray]:
    """Return the rows that each fold holds out, counted without those of weight zero."""
    y = column_or_1d(y)
    everything, weights = np.arange(len(y)), _check_sample_weight(sample_weight, y)
    place = np.cumsum(weights > 0) - 1
    folds = []
    for learned, held_out in check_cv(cv, y, classifier=True).split(everything, y):
        if not np.array_equal(np.sort(np.r_[learned, held_out]), everything):
            raise ValueError(
                f"Expected cv to learn all {len(y)} rows that it does not hold out, got a split of "
                f"{len(learned)} and {len(held_out)}. Use GridSearchCV with such a cv."
            )
        folds.append(place[held_out[weights[held_out] > 0]])
    return folds
