"""Choosing the ridge and the weight of the tangents by cross-validation, at the price of one pass."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.base import _fit_context
from sklearn.metrics import check_scoring
from sklearn.model_selection import check_cv
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import validate_parameter_constraints
from torch import nn

from .classifier import FastNTKClassifier, Scored, Training
from .distributed import ranks
from .exceptions import warn
from .modes import without_modes
from .progress import progress
from .state import State, Sums
from .store.ledger import Ledger
from .store.private import Private
from .sums.memory import require
from .sums.ridge import number, solve_each
from .sums.solvers import Solution
from .sums.statistics import Statistics
from .tangents.model import row_energies
from .validation import CONSTRAINTS, CheckedRows

_SCALES = (0.25, 1.0, 4.0)
_AT_ONCE = 256  # rows of which copies are made


class FastNTKClassifierCV(FastNTKClassifier):
    """A FastNTKClassifier that chooses `alpha` and `tangent_scale` by cross-validation.

    The choice is that of :class:`~sklearn.model_selection.GridSearchCV` with an integer `random_state`,
    at the price of one pass: neither parameter changes the Jacobians, the sums of a fold's training rows
    are those of all rows less those of the fold, and each candidate is one solve. The fitted estimator
    is the classifier with the best parameters, learned from all rows. It can forget; its receipts say
    that the choice of hyper-parameters has seen the rows.

    Parameters
    ----------
    backbone : str, nn.Module or callable, default="mlp"
        As the further parameters in :class:`FastNTKClassifier`. The anchor is "pretrained": a
        fine-tuned one has seen the rows that a fold holds out.

    alphas : sequence of float or "auto", default=("auto", 0.03, 0.1, 0.3, 1.0)
        Ridges to try.

    tangent_scales : sequence of float, default=None
        Weights of the tangents to try; 0 is a linear probe. None is (0.25, 1.0, 4.0), or 1.0 where
        there are no tangents (a ladder or the head alone).

    cv : int, splitter or iterable, default=None
        As in :class:`~sklearn.model_selection.GridSearchCV`; what a fold does not hold out, it must
        learn.

    scoring : str or callable, default=None
        As there; None is the accuracy.

    trainable, kernel, n_directions, target_scale, n_components, n_prompts, lora_rank, image_size, \
pretrained, batch_size, predict_with, precision, backbone_has_seen, keep, augment, num_workers, \
on_error, device, random_state, verbose
        As in :class:`FastNTKClassifier`.

    Attributes
    ----------
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
    FastNTKClassifier : The classifier, with its further methods and attributes.

    Notes
    -----
    :meth:`partial_fit` of an unfitted estimator searches on the rows that it is given, and later parts
    keep what was chosen.

    Sample weights count in the scores too, where the scorer takes them. Features and Jacobians of all
    rows are kept until the end: n (d + C k) numbers, or n (d + r k) with kernel="pseudo".

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifierCV
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifierCV(alphas=(1e-5, 1e-4, 1e-3), random_state=0).fit(X, y)
    >>> clf.best_params_
    {'alpha': 0.0001, 'tangent_scale': 1.0}
    >>> clf.unlearn(X[:10]).n_samples_learned_
    140
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = CONSTRAINTS | {
        "alphas": ["array-like", str, Real],
        "tangent_scales": ["array-like", Real, None],
        "cv": ["cv_object"],
        "scoring": [str, callable, None],
    }

    def __init__(
        self,
        backbone: str | nn.Module | Callable[[], nn.Module] = "mlp",
        *,
        alphas: Sequence[float | str] = ("auto", 0.03, 0.1, 0.3, 1.0),
        tangent_scales: Sequence[float] | None = None,
        cv: Any = None,
        scoring: Any = None,
        trainable: str | Sequence[str] = "auto",
        kernel: str = "full",
        n_directions: int = 3,
        target_scale: float | str = "auto",
        n_components: int | str | None = "auto",
        n_prompts: int = 10,
        lora_rank: int = 4,
        image_size: int | tuple[int, int] | None = None,
        pretrained: bool = True,
        batch_size: int | str = "auto",
        predict_with: str = "auto",
        precision: str = "auto",
        backbone_has_seen: bool | str = "auto",
        keep: str | None = None,
        augment: str | None = None,
        num_workers: int = 0,
        on_error: str = "raise",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            trainable=trainable,
            kernel=kernel,
            n_directions=n_directions,
            target_scale=target_scale,
            n_components=n_components,
            n_prompts=n_prompts,
            lora_rank=lora_rank,
            image_size=image_size,
            pretrained=pretrained,
            batch_size=batch_size,
            predict_with=predict_with,
            precision=precision,
            backbone_has_seen=backbone_has_seen,
            keep=keep,
            augment=augment,
            num_workers=num_workers,
            on_error=on_error,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.alphas = alphas
        self.tangent_scales = tangent_scales
        self.cv = cv
        self.scoring = scoring

    @_fit_context(prefer_skip_nested_validation=True)
    @without_modes
    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, sample_ids: Any = None, classes: Any = None
    ) -> Self:
        """Take one pass, score the candidates on held-out rows, and fit the best one on all rows.

        Parameters
        ----------
        X, y, sample_weight, sample_ids, classes
            As in :meth:`FastNTKClassifier.fit`.

        Returns
        -------
        self : FastNTKClassifierCV

        Raises
        ------
        ValueError
            If a candidate is not valid, a fold leaves rows out of both of its parts, or this is within
            `share_rows`.

        HeavyRowError
            As in :meth:`FastNTKClassifier.fit`, for the best alpha.

        InsufficientMemoryError
            If the Jacobians of all rows do not fit.

        Warns
        -----
        UserWarning
            If the best alpha or tangent_scale is at an edge of its grid.
        """
        if ranks().size > 1:
            raise ValueError(
                "Expected a search outside of share_rows, whose ranks each hold only their share of the "
                "rows. Search in one process, and fit FastNTKClassifier with what it finds."
            )
        alphas = _candidates("alpha", self.alphas)
        given = self.tangent_scales
        scales = _candidates("tangent_scale", _SCALES if given is None else given)
        training = self._prepare(
            X, y, sample_weight, sample_ids, classes, searched_by=(type(self).__name__,)
        )
        model, names, checked = training.model, training.classes, training.checked
        labels = checked.labels
        if not model.projection.k:
            scales = [self.tangent_scale]
        candidates = [{"alpha": a, "tangent_scale": s} for a, s in product(alphas, scales)]
        folds = _folds(self.cv, y, checked)
        scorer = check_scoring(FastNTKClassifier(), scoring=self.scoring)
        # as in a grid search of scikit-learn 1.8 and later
        weighted = sample_weight is not None and getattr(scorer, "_accept_sample_weight", bool)()
        ledger = Ledger()
        rows = _TangentRows(self, training, ledger)
        whole = model.empty_statistics()
        rows.add(whole, np.arange(len(labels)))
        scores = np.empty((len(folds), len(candidates)))
        for f, fold in enumerate(progress(folds, "folds", unit="fold", show=self.verbose)):
            rest = whole.copy()
            rows.add(rest, fold, -1.0)
            weights = {"sample_weight": checked.weights[fold]} if weighted else {}
            for c, predictor in enumerate(rows.predictors(rest, fold, alphas, scales)):
                scores[f, c] = scorer(predictor, fold, names[labels[fold]], **weights)
        compared = _compared(candidates, scores)
        chosen = compared["best_params_"]
        _warn_of_edges(chosen, alphas, scales)
        settings = {"alpha": number(chosen["alpha"]), "tangent_scale": chosen["tangent_scale"]}
        state = State.empty(model).with_settings(**settings)
        state = state.learn(rows.sums(whole))
        kept = None if self.keep is None else [row.copy() for row in rows.shared.numpy()]
        ledger = ledger.added(rows.digests, labels.tolist(), checked.weights.tolist(), checked.ids, kept)
        private = Private(state, ledger, [], secrets.token_hex(8))
        found = training.columns | compared | {"scorer_": scorer, "skipped_": checked.skipped}
        return self._commit(private.adapter(names), private, found=found)


def _candidates(parameter: str, values: Any) -> list[Any]:
    """Return one value of a parameter of the classifier, or several, as a list of valid candidates."""
    listed = [values] if isinstance(values, (str, Real)) else list(values)
    if not listed:
        raise ValueError(f"Expected {parameter}s to hold one value at least, got none.")
    for value in listed:
        validate_parameter_constraints(CONSTRAINTS, {parameter: value}, "FastNTKClassifier")
    return [value if value == "auto" else float(value) for value in listed]


def _warn_of_edges(chosen: dict[str, Any], alphas: list[Any], scales: list[Any]) -> None:
    """Warn where the best value of a grid of numbers is its smallest or largest."""
    for name, grid in (("alpha", alphas), ("tangent_scale", scales)):
        numbers = sorted(value for value in grid if value != "auto")
        best = chosen[name]
        if len(numbers) > 1 and best in {numbers[0], numbers[-1]} - {0}:
            warn(
                f"The best {name}={best:g} is at an edge of the grid {numbers}: a better one may lie "
                f"beyond. Widen {name}s."
            )


def _column(values: list[float | str]) -> np.ndarray:
    """Return the values of a parameter as an array in which numbers stay numbers."""
    return np.array(values, dtype=object if "auto" in values else np.float64)


def _compared(candidates: list[dict[str, Any]], scores: np.ndarray) -> dict[str, Any]:
    """Return the attributes that tell how the candidates compare; what has no score ranks last."""
    means = scores.mean(0)
    if np.isnan(means).any():
        warn(f"The scores of {np.isnan(means).sum()} candidates are NaN; they rank last.")
    places = rankdata(np.where(np.isnan(means), np.inf, -means), method="min").astype(np.int32)
    best = int(places.argmin())
    return {
        "n_splits_": len(scores),
        "cv_results_": {
            **{f"param_{name}": _column([c[name] for c in candidates]) for name in candidates[0]},
            "params": candidates,
            **{f"split{i}_test_score": row for i, row in enumerate(scores)},
            "mean_test_score": means,
            "std_test_score": scores.std(0),
            "rank_test_score": places,
        },
        "best_index_": best,
        "best_params_": candidates[best],
        "best_score_": float(means[best]),
    }


class _TangentRows:
    """Features and Jacobians of all rows of a fit, held in memory."""

    def __init__(self, estimator: FastNTKClassifierCV, training: Training, ledger: Ledger) -> None:
        self.training, self.digests = training, list[bytes]()
        self.weights = torch.from_numpy(training.checked.weights)
        self.labels = torch.from_numpy(training.checked.labels)
        model, n, started = training.model, len(training.rows), time.perf_counter()
        (width, components), n_classes = model.sizes, model.settings.n_classes
        dtype = model.directions.dtype
        require(
            n * (width + 1 + n_classes * components) * dtype.itemsize + model.memory_needed(),
            f"Statistics, and features and Jacobians of {n:,} rows, need",
            'Take fewer components, kernel="pseudo" or fewer rows, or GridSearchCV, which holds none.',
        )
        self.shared = torch.empty(n, width + 1, dtype=dtype)
        self.own = torch.empty(n, n_classes, components, dtype=dtype)
        self.energies, start = np.empty(n), 0
        shown = ledger.noted(estimator._progress(training.rows, "learning", n), self.digests)
        for shared, own in model.all_tangents(shown, training.checked.numbers):
            here = slice(start, start + len(shared))
            shared, own = shared.cpu(), own.cpu()
            self.shared[here], self.own[here] = shared, own
            self.energies[here] = row_energies(shared, own, self.weights[here]).numpy()
            start = here.stop
        self.seconds_per_row = (time.perf_counter() - started) / n

    def sums(self, statistics: Statistics) -> Sums:
        """Return what a state learns: these statistics, of all rows."""
        checked = self.training.checked
        class_rows = np.bincount(checked.labels, minlength=len(self.training.classes))
        return Sums(statistics, class_rows, checked.numbers, self.energies, self.seconds_per_row)

    def add(self, statistics: Statistics, rows: np.ndarray, sign: float = 1.0) -> None:
        """Add the outer products of some rows, or subtract them."""
        for chosen in torch.from_numpy(rows).split(_AT_ONCE):
            weights = sign * self.weights[chosen]
            statistics.add(self.shared[chosen], self.own[chosen], self.labels[chosen], weights)

    def predictors(
        self, rest: Statistics, fold: np.ndarray, alphas: list[float | str], scales: list[float]
    ) -> Iterator[FastNTKClassifier]:
        """Yield what predicts a fold's rows after learning the others, for every alpha and scale."""
        training, settings = self.training, self.training.model.settings
        counts = np.bincount(np.delete(training.checked.labels, fold), minlength=settings.n_classes)
        ridges, target_scale = [number(alpha) for alpha in alphas], settings.target_scale
        by_scale = [
            solve_each(rest, ridges, tangent_scale=scale, target_scale=target_scale) for scale in scales
        ]
        for solutions in zip(*by_scale, strict=True):
            for scale, solution in zip(scales, solutions, strict=True):
                scores = self._scores(fold, solution, scale)
                scores[:, counts == 0] = -np.inf
                yield _Candidate(Scored(scores, training.classes, settings.sharpness))

    def _scores(self, fold: np.ndarray, solution: Solution, scale: float) -> np.ndarray:
        W, z = solution.W.to(self.shared.dtype), solution.z.to(self.own.dtype)
        return np.concatenate(
            [
                (self.shared[rows] @ W.T + scale**0.5 * (self.own[rows] @ z)).double().numpy()
                for rows in torch.from_numpy(fold).split(_AT_ONCE)
            ]
        )


class _Candidate(FastNTKClassifier):
    """What is known of a candidate: its scores of a fold, for a scorer that asks about those rows."""

    def __init__(self, scored: Scored) -> None:
        super().__init__()
        self.scored, self.classes_ = scored, scored.classes

    def _scores(self, X: Any) -> Scored:
        return self.scored


def _folds(cv: Any, y: Any, checked: CheckedRows) -> list[np.ndarray]:
    """Return the rows that each fold holds out, counted among those that are learned."""
    y = column_or_1d(y)
    everything = np.arange(len(y))
    learned_rows = np.isin(everything, checked.numbers)
    place = np.cumsum(learned_rows) - 1
    folds = []
    for learned, held_out in check_cv(cv, y, classifier=True).split(everything, y):
        if not np.array_equal(np.sort(np.r_[learned, held_out]), everything):
            raise ValueError(
                f"Expected cv to learn all {len(y)} rows that it does not hold out, got a split of "
                f"{len(learned)} and {len(held_out)}. Use GridSearchCV with such a cv."
            )
        folds.append(place[held_out[learned_rows[held_out]]])
    return folds
