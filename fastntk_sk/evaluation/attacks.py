"""Attacks: what an adversary, who knows the method and has models of his own, can still tell."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.utils import check_random_state, check_scalar

from ._checks import check_dataset, check_fitted, check_margins, class_indices

_SMALLEST_DEVIATION = 1e-6


def population_mia_auc(estimator: Any, forget: Any, test: Any) -> float:
    r"""Return how well the loss tells forgotten rows from rows that were never learned.

    .. math::

        AUC = P( \ell(x_f) < \ell(x_t) ) + \tfrac{1}{2} P( \ell(x_f) = \ell(x_t) ), \quad
        \ell = - \log p_y ,

    over x_f of the forget set and x_t of the test set. Above 0.5 the forget rows look learned, below
    it they look pushed away, which tells as much. The ideal value is the oracle's, and 0.5 only if
    the oracle has it: mislabelled or hard rows do not have the loss of test rows under any model. An
    attack that knows only the population over-states privacy; :func:`u_lira` is the strong one.

    Parameters
    ----------
    estimator : estimator
        Fitted classifier.

    forget : pair (X, y)
        The members.

    test : pair (X, y)
        Rows that no model has seen.

    Returns
    -------
    auc : float
        In [0, 1].

    Raises
    ------
    NotFittedError
        If the model is not fitted.

    ValueError
        If a set is empty, or a label is not among `classes_`.

    References
    ----------
    Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of
    Privacy", arXiv:2403.01218.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from fastntk_sk.evaluation import population_mia_auc
    >>> X, y = load_iris(return_X_y=True)
    >>> wrong = (y + 1) % 3
    >>> learned, unseen = (X[::2], wrong[::2]), (X[1::2], wrong[1::2])
    >>> clf = DecisionTreeClassifier(random_state=0).fit(X, y)
    >>> population_mia_auc(clf, (X[::2], y[::2]), unseen)
    1.0
    >>> population_mia_auc(clf, learned, unseen)
    0.5
    """
    check_fitted(estimator)
    scores = []
    for name, dataset in {"forget": forget, "test": test}.items():
        X, y = check_dataset(dataset, name)
        labels = class_indices(y, estimator.classes_)
        scores.append(np.asarray(estimator.predict_proba(X))[np.arange(len(labels)), labels])
    members = np.repeat([1, 0], [len(part) for part in scores])
    return float(roc_auc_score(members, np.concatenate(scores)))


@dataclass(frozen=True)
class ULiRAResult:
    """What :func:`u_lira` found.

    Parameters
    ----------
    auc : float
        0.5 is ideal.

    auc_standard_error : float
        From a bootstrap over examples and models; differences of less than two of it are noise.

    tpr_at_1_percent_fpr : float
        0.01 is ideal.

    n_models : tuple of two ints
        Unlearned and oracle models.

    n_examples : int
    """

    auc: float
    auc_standard_error: float
    tpr_at_1_percent_fpr: float
    n_models: tuple[int, int]
    n_examples: int


def u_lira(unlearned: Any, oracle: Any, *, n_bootstrap: int = 200, random_state: Any = 0) -> ULiRAResult:
    r"""Attack each example with models that unlearned it and models that never saw it.

    For example i, Gaussians are fitted to the margins of one half of the models of each kind, and
    every model of the other half gets the log likelihood ratio of having unlearned it,

    .. math::

        s_i(m) = \log N(m; \mu_i^u, \sigma_i^u) - \log N(m; \mu_i^r, \sigma_i^r);

    then the halves change places, so that each model is attacked once. AUC and true-positive rate
    are over all models and examples together, unlearned models being the positives. An AUC of 0.5
    and a rate of 0.01 are ideal, 1 is worst; what a second set of oracle models scores is the noise.

    Parameters
    ----------
    unlearned : array-like of shape (n_models, n_examples)
        :func:`margins` under models that learned each example and then unlearned it. NaN where a
        model does not count for an example.

    oracle : array-like of shape (m_models, n_examples)
        The same under models that never learned it.

    n_bootstrap : int, default=200
        Number of resamples for the standard error.

    random_state : int, RandomState instance or None, default=0
        Seeds the bootstrap; the attack itself draws nothing.

    Returns
    -------
    result : ULiRAResult

    Raises
    ------
    MissingOracleError
        If `oracle` is None.

    ValueError
        If shapes do not fit, margins are infinite, or examples have fewer than four models of a kind.

    Notes
    -----
    Standard deviations count as at least 1e-6. Of the thresholds with at most 1 % false positives
    the best is taken.

    References
    ----------
    Hayes et al., arXiv:2403.01218; Kurmanji et al., arXiv:2302.09880.

    Examples
    --------
    >>> import numpy as np
    >>> from fastntk_sk.evaluation import u_lira
    >>> draws = np.random.default_rng(0)
    >>> never = draws.normal(size=(40, 30))
    >>> result = u_lira(draws.normal(size=(40, 30)), never)
    >>> abs(result.auc - 0.5) < 3 * result.auc_standard_error
    True
    >>> round(u_lira(draws.normal(loc=8, size=(40, 30)), never).auc, 2)
    1.0
    """
    check_scalar(n_bootstrap, "n_bootstrap", Integral, min_val=2)
    parts = check_margins(unlearned, oracle)
    halves = [(np.cumsum(~np.isnan(part), axis=0) - 1) % 2 for part in parts]
    scores = [np.full(part.shape, np.nan) for part in parts]
    for half in (0, 1):
        fits = [_gaussian(part, side != half) for part, side in zip(parts, halves, strict=True)]
        for part, side, score in zip(parts, halves, scores, strict=True):
            of_unlearned, of_oracle = (_log_density(part, *fit) for fit in fits)
            np.copyto(score, of_unlearned - of_oracle, where=side == half)
    positives, negatives = (score[~np.isnan(score)] for score in scores)
    members = np.repeat([1, 0], [len(positives), len(negatives)])
    false, true, _ = roc_curve(members, np.concatenate([positives, negatives]), drop_intermediate=False)
    auc, error = _bootstrapped_auc(scores[0], scores[1], n_bootstrap, check_random_state(random_state))
    return ULiRAResult(
        auc=auc,
        auc_standard_error=error,
        tpr_at_1_percent_fpr=float(true[false <= 0.01].max()),
        n_models=(len(parts[0]), len(parts[1])),
        n_examples=parts[0].shape[1],
    )


def _gaussian(part: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each example over chosen models."""
    values = np.where(chosen, part, np.nan)
    deviation = np.nanstd(values, axis=0, ddof=1)
    return np.nanmean(values, axis=0), np.maximum(deviation, _SMALLEST_DEVIATION)


def _log_density(part: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return the log density of a Gaussian, without its constant."""
    return -0.5 * ((part - mean) / deviation) ** 2 - np.log(deviation)


def _bootstrapped_auc(
    positives: np.ndarray, negatives: np.ndarray, n_bootstrap: int, draws: np.random.RandomState
) -> tuple[float, float]:
    """Return the AUC of two score matrices and its standard error.

    Models of each kind and examples are drawn with replacement: scores of one model, and those of
    one example, are not independent.
    """
    scores = np.concatenate([positives, negatives])
    counted = ~np.isnan(scores)
    _, groups = np.unique(scores[counted], return_inverse=True)
    positive = np.repeat([True, False], [len(positives), len(negatives)])[:, None]

    def auc(weights: np.ndarray) -> float:
        mass, rival = (
            np.bincount(groups, (weights * chosen)[counted]) for chosen in (positive, ~positive)
        )
        below = np.cumsum(rival) - rival / 2
        n_pairs = mass.sum() * rival.sum()
        return float(mass @ below / n_pairs) if n_pairs else float("nan")

    def times(n: int) -> np.ndarray:
        return np.bincount(draws.randint(n, size=n), minlength=n)

    resampled = []
    for _ in range(n_bootstrap):
        models = np.concatenate([times(len(positives)), times(len(negatives))])
        resampled.append(auc(np.outer(models, times(scores.shape[1]))))
    return auc(np.ones(scores.shape)), float(np.nanstd(resampled, ddof=1))
