"""Attacks and audits: what an adversary can still tell about forgotten rows."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from scipy.special import rel_entr
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.utils import check_random_state, check_scalar
from torch import nn

from ..modes import without_modes
from ..validation import class_indices
from ._checks import check_dataset, check_fitted, require_oracle

_FEWEST_MODELS = 4
_SMALLEST_DEVIATION = 1e-6
_EMPTY_BIN = 1e-5


def population_mia_auc(estimator: Any, forget: Any, test: Any) -> float:
    r"""Return how well the loss distinguishes forgotten rows from rows that were never learned.

    .. math::

        AUC = P( \ell(x_f) < \ell(x_t) ) + \tfrac{1}{2} P( \ell(x_f) = \ell(x_t) ), \quad
        \ell = - \log p_y ,

    over x_f of the forget set and x_t of the test set. Above 0.5 the forgotten rows look learned;
    below 0.5 they look pushed away, which reveals as much. The ideal value is the oracle's, which is not
    0.5 for mislabelled or hard rows. One threshold for all rows overstates privacy; :func:`u_lira` is
    the strong attack.

    Parameters
    ----------
    estimator : classifier or Module
        As in :func:`accuracy_gaps`.

    forget, test : pair (X, y)
        The members, and rows that no model has seen.

    Returns
    -------
    auc : float
        In [0, 1].

    Raises
    ------
    NotFittedError, ValueError
        If the model is not fitted, if a set is empty, or if a label is not among `classes_`.

    References
    ----------
    Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of
    Privacy", arXiv:2403.01218.

    Examples
    --------
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from fastntk_sk.evaluation import population_mia_auc
    >>> X, y = [[0], [1], [2], [3]], [0, 1, 0, 1]
    >>> clf = DecisionTreeClassifier().fit(X, y)
    >>> population_mia_auc(clf, (X[:2], y[:2]), (X[2:], [1, 0])), population_mia_auc(clf, (X, y), (X, y))
    (1.0, 0.5)
    """
    sets = check_dataset(forget, "forget"), check_dataset(test, "test")
    estimator, scores = check_fitted(estimator, sets[0][0]), []
    for X, y in sets:
        labels = class_indices(y, estimator.classes_)
        scores.append(np.asarray(estimator.predict_proba(X))[np.arange(len(labels)), labels])
    return float(roc_auc_score(*_members(*scores)))


@dataclass(frozen=True)
class ULiRAResult:
    """The result of :func:`u_lira`.

    Parameters
    ----------
    auc : float
        0.5 is ideal.

    auc_standard_error : float
        From a bootstrap over examples and models; differences below two standard errors are noise.

    tpr_at_1_percent_fpr : float
        The highest true-positive rate at 1 % false positives or fewer; 0.01 is ideal.
    """

    auc: float
    auc_standard_error: float
    tpr_at_1_percent_fpr: float


def u_lira(unlearned: Any, oracle: Any, *, n_bootstrap: int = 200, random_state: Any = 0) -> ULiRAResult:
    r"""Attack each example with models that unlearned it and models that never saw it.

    For example i, Gaussians are fitted to the margins of one half of the models of each kind, and
    every model of the other half gets the log likelihood ratio of having unlearned it,

    .. math::

        s_i(m) = \log N(m; \mu_i^u, \sigma_i^u) - \log N(m; \mu_i^r, \sigma_i^r);

    then the halves change places, so that each model is attacked once. AUC and true-positive rate are
    over all models and examples together, with unlearned models as positives; 1 is worst, and the score
    of a second set of oracle models is the noise floor. Standard deviations are at least 1e-6.

    Parameters
    ----------
    unlearned, oracle : array-like of shape (n_models, n_examples)
        :func:`margins` under models that learned each example and then unlearned it, and under models
        that never learned it. NaN where a model does not count for an example.

    n_bootstrap : int, default=200
        Number of resamples for the standard error.

    random_state : int, RandomState instance or None, default=0
        Seeds the bootstrap.

    Returns
    -------
    result : ULiRAResult

    Raises
    ------
    MissingOracleError
        If `oracle` is None.

    ValueError
        If shapes do not fit, margins are infinite, or an example has fewer than four models of a kind.

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
    parts = _check_margins(unlearned, oracle)
    halves = [(np.cumsum(~np.isnan(part), axis=0) - 1) % 2 for part in parts]
    scores = [np.full(part.shape, np.nan) for part in parts]
    for half in (0, 1):
        fits = [_gaussian(part, side != half) for part, side in zip(parts, halves, strict=True)]
        for part, side, score in zip(parts, halves, scores, strict=True):
            of_unlearned, of_oracle = (norm.logpdf(part, *fit) for fit in fits)
            np.copyto(score, of_unlearned - of_oracle, where=side == half)
    counted = (score[~np.isnan(score)] for score in scores)
    false, true, _ = roc_curve(*_members(*counted), drop_intermediate=False)
    auc, error = _bootstrapped_auc(scores[0], scores[1], n_bootstrap, check_random_state(random_state))
    return ULiRAResult(auc, error, float(true[false <= 0.01].max()))


def klom(unlearned: Any, oracle: Any, *, bins: int = 20, clip: float = 100.0) -> np.ndarray:
    r"""Return the KL divergence of each example's margins between two kinds of models.

    .. math::

        KLoM_i = \sum_b p_b \log \frac{p_b}{q_b},

    where p and q are histograms of the margin of example i under the unlearned and under the oracle
    models, with equal bins over their joint range. 0 is ideal, more is worse; the score of a second set
    of oracle models is the noise floor. A bin without any oracle model counts as q = 1e-5, as in the
    authors' own evaluation: otherwise the divergence would be infinite wherever one unlearned model
    stands alone. The paper reports the mean and the 95th percentile of each set.

    Parameters
    ----------
    unlearned, oracle : array-like of shape (n_models, n_examples)
        As in :func:`u_lira`, which raises the same errors.

    bins : int, default=20

    clip : float, default=100.0
        Margins are clipped to [-clip, clip] first.

    Returns
    -------
    divergences : ndarray of shape (n_examples,)
        At most log(1e5) = 11.5.

    References
    ----------
    Georgiev et al., "Attribute-to-Delete", arXiv:2410.23232, appendix E.1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastntk_sk.evaluation import klom
    >>> never, unlearned = np.array([[0, 0, 1, 1]]).T, np.array([[0, 1, 1, 1]]).T
    >>> klom(unlearned, never).round(4)  # 1/4 log 1/2 + 3/4 log 3/2
    array([0.1308])
    """
    check_scalar(clip, "clip", Real, min_val=0, include_boundaries="neither")
    parts = [np.clip(part, -clip, clip) for part in _check_margins(unlearned, oracle)]
    divergences = np.zeros(parts[0].shape[1])
    for i in range(len(divergences)):
        columns = [part[~np.isnan(part[:, i]), i] for part in parts]
        edges = np.histogram_bin_edges(np.concatenate(columns), bins)
        p, q = (np.histogram(column, edges)[0] / len(column) for column in columns)
        divergences[i] = rel_entr(p, np.maximum(q, _EMPTY_BIN)).sum()
    return divergences


@without_modes
def gaussian_unlearning_score(
    module: nn.Module, X: Any, y: Any, noise: Any, *, sigma: float, batch_size: int = 64
) -> np.ndarray:
    r"""Test whether a model still knows the noise that was added to rows it should have forgotten.

    Before training, noise :math:`\xi_i \sim N(0, \sigma^2 I)` is added to the rows that will be
    forgotten. The score of the unlearned model at the clean inputs is

    .. math::

        s_i = \frac{\langle \xi_i, g_i \rangle}{\sigma \| g_i \|}, \quad
        g_i = \nabla_x \, CE(module(x_i), y_i) .

    A model that never saw the noise is independent of it, so that s_i is exactly N(0, 1): the ideal
    mean is 0, with a standard error of 1/sqrt(n), and no oracle is needed. If the mean is more than two
    standard errors from zero, the model still knows the noise; if it is negative, the loss falls toward
    the poisoned inputs. A mean near zero proves nothing for rows that were not poisoned.

    Parameters
    ----------
    module : nn.Module
        Maps a batch of inputs to scores of shape (n, n_classes), for example the result of
        `to_module`. Its mode and gradients are left unchanged.

    X, noise : array-like or Tensor of shape (n, ...)
        Clean inputs as `module` takes them, and what was added to them.

    y : array-like or Tensor of shape (n,)
        Class indices that the poisoned rows were learned with.

    sigma : float
        Standard deviation of the noise.

    batch_size : int, default=64

    Returns
    -------
    scores : float64 ndarray of shape (n,)

    Raises
    ------
    ValueError
        If there is no row, if shapes differ, or if the loss of a row has no gradient.

    References
    ----------
    Pawelczyk et al., "Machine Unlearning Fails to Remove Data Poisoning Attacks", arXiv:2406.17216.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.evaluation import gaussian_unlearning_score
    >>> draws = torch.Generator().manual_seed(0)
    >>> X, noise = torch.randn(2, 400, 5, generator=draws)
    >>> y = torch.zeros(400, dtype=torch.int64)
    >>> scores = gaussian_unlearning_score(torch.nn.Linear(5, 3), X, y, noise, sigma=1.0)
    >>> bool(abs(scores.mean()) < 4 / 400**0.5)
    True
    """
    check_scalar(sigma, "sigma", Real, min_val=0, include_boundaries="neither")
    parameter = next(module.parameters(), torch.zeros(()))
    X, noise = (torch.as_tensor(part).to(parameter) for part in (X, noise))
    labels = torch.as_tensor(y).to(parameter.device, torch.int64)
    if not len(X) or X.shape != noise.shape or labels.shape != X.shape[:1]:
        raise ValueError(
            "Expected rows, noise of the same shape and one label a row, got shapes "
            f"{tuple(X.shape)}, {tuple(noise.shape)} and {tuple(labels.shape)}."
        )
    module, parts = copy.deepcopy(module).eval(), []
    for x, of_batch in zip(X.split(batch_size), labels.split(batch_size), strict=True):
        x = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(module(x), of_batch, reduction="sum")
        parts.append(torch.autograd.grad(loss, x)[0].flatten(1).double())
    gradients = torch.cat(parts)
    norms = gradients.norm(dim=1)
    flat = torch.nonzero(norms == 0).flatten().tolist()
    if flat:
        raise ValueError(
            f"Expected a gradient of the loss in each input, got zero in rows {flat[:10]}. Use a "
            "module in float64, or leave these rows out."
        )
    inner = (noise.flatten(1).double() * gradients).sum(1)
    return (inner / (sigma * norms)).cpu().numpy()


def _members(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (1 for positives) and scores, as scikit-learn's ranking metrics take them."""
    return np.repeat([1, 0], [len(positives), len(negatives)]), np.concatenate([positives, negatives])


def _check_margins(unlearned: Any, oracle: Any) -> list[np.ndarray]:
    """Return both margins as float64; raise unless each example has four finite ones of each kind."""
    require_oracle(oracle)
    parts = [np.asarray(part, dtype=np.float64) for part in (unlearned, oracle)]
    shapes = [part.shape for part in parts]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][1:] != shapes[1][1:] or not shapes[0][1]:
        raise ValueError(
            "Expected margins of shapes (n_models, n_examples) and (m_models, n_examples), got "
            f"{shapes[0]} and {shapes[1]}."
        )
    for name, part in zip(("unlearned", "oracle"), parts, strict=True):
        if np.isinf(part).any():
            raise ValueError(f"Expected finite margins or NaN, got infinite ones of {name} models.")
        few = np.flatnonzero((~np.isnan(part)).sum(axis=0) < _FEWEST_MODELS)
        if len(few):
            raise ValueError(
                f"Expected at least {_FEWEST_MODELS} {name} models for each example, got fewer for the "
                f"examples {few[:10].tolist()}{' and others' if len(few) > 10 else ''}. Train more "
                "models, or leave these examples out."
            )
    return parts


def _gaussian(part: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each example over the chosen models."""
    values = np.where(chosen, part, np.nan)
    deviation = np.nanstd(values, axis=0, ddof=1)
    return np.nanmean(values, axis=0), np.maximum(deviation, _SMALLEST_DEVIATION)


def _bootstrapped_auc(
    positives: np.ndarray, negatives: np.ndarray, n_bootstrap: int, draws: np.random.RandomState
) -> tuple[float, float]:
    """Return the AUC of two score matrices and its standard error.

    Models of each kind and examples are drawn with replacement, because scores of one model, and
    those of one example, are not independent.
    """
    positive, scores = _members(positives, negatives)
    counted = ~np.isnan(scores)
    _, groups = np.unique(scores[counted], return_inverse=True)

    def auc(weights: np.ndarray) -> float:
        mass, rival = (
            np.bincount(groups, (weights * (positive == kind)[:, None])[counted]) for kind in (1, 0)
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
