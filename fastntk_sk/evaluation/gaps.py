"""The two parts of what separates a deletion from a retraining; they are reported apart.

The algebraic gap is what is left between a deletion and a refit of the same linearised model, the
linearisation gap what is left between it and a real retraining.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._checks import check_oracle, check_rows


def algebraic_gap(unlearned: Any, refit: Any) -> float:
    r"""Return how far a deletion is from a refit of the same linearised model.

    .. math::

        \| \theta_u - \theta_r \| / \| \theta_r \|, \quad \theta = (W, \delta) .

    0 is ideal; rounding leaves about 1e-12, more than 1e-6 is a mistake or numerical drift. It says
    nothing of what the linearisation itself has seen: that is :func:`linearisation_gap`, and the two
    are reported apart. A small algebraic gap does not make up for a large linearisation gap.

    Parameters
    ----------
    unlearned : FastNTKClassifier

    refit : FastNTKClassifier
        Fitted on the retain set at the same anchor, with the same parameters and seed.

    Returns
    -------
    gap : float

    Raises
    ------
    MissingOracleError
        If `refit` is None.

    NotFittedError
        If a model is not fitted.

    TypeError
        If a model is not a FastNTKClassifier.

    ValueError
        If the two are not the same linearised model; the message says in what they differ.

    References
    ----------
    Li et al., "Fast-NTK: Parameter-Efficient Unlearning for Large-Scale Models", arXiv:2312.14923.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.evaluation import algebraic_gap
    >>> X, y = load_iris(return_X_y=True)
    >>> u = FastNTKClassifier(random_state=0).fit(X, y).unlearn(X[:10])
    >>> r = FastNTKClassifier(random_state=0).fit(X[10:], y[10:])
    >>> algebraic_gap(u, r) < 1e-9
    True
    """
    check_oracle(unlearned, refit)
    for model in (unlearned, refit):
        if not hasattr(model, "displacement_"):
            raise TypeError(
                f"Expected a FastNTKClassifier, got {type(model).__name__}: only linearised models "
                "have an algebraic gap."
            )
    mine, theirs = (_problem(model) for model in (unlearned, refit))
    differing = [name for name, value in mine.items() if theirs[name] != value]
    if differing:
        raise ValueError(
            f"Expected a refit of the same linearised model, got one that differs in {differing}. "
            "Fit it with the same parameters and an integer random_state; for anchor='finetuned' a "
            "refit moves the anchor: compare with copy.deepcopy(unlearned).rebuild(X_retain)."
        )
    found, expected = (
        np.concatenate([model.directions_.ravel(), model.displacement_]).astype(np.float64)
        for model in (unlearned, refit)
    )
    return _relative(found - expected, expected)


def linearisation_gap(unlearned: Any, oracle: Any, X: Any) -> float:
    r"""Return how far the scores of an unlearned model are from those of a real retraining.

    .. math::

        \| F_u - F_r \| / \| F_r \|, \quad F_{ic} = f_c(x_i) - \frac{1}{C} \sum_k f_k(x_i),

    with the scores f of `decision_function`. 0 is ideal, more is worse; two retrainings differ too,
    so compare with what a second oracle has. It is reported apart from :func:`algebraic_gap`: this
    one holds everything, what the anchor has seen and the chance of a second training included.

    Parameters
    ----------
    unlearned, oracle : estimator
        As in :func:`accuracy_gaps`, with `decision_function`.

    X : array-like of n rows

    Returns
    -------
    gap : float
        Infinite if the models differ in which classes have no score (-inf).

    Raises
    ------
    MissingOracleError, NotFittedError, ValueError
        As in :func:`accuracy_gaps`.

    References
    ----------
    Achille et al., "LQF: Linear Quadratic Fine-Tuning", arXiv:2012.11140, on what a linearisation
    keeps.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import RidgeClassifier
    >>> from fastntk_sk.evaluation import linearisation_gap
    >>> X, y = load_iris(return_X_y=True)
    >>> u, r = (RidgeClassifier(alpha).fit(X, y) for alpha in (1.0, 1.1))
    >>> 0 < linearisation_gap(u, r, X) < 0.01
    True
    """
    check_oracle(unlearned, oracle)
    check_rows(X)
    found, expected = (_columns(model.decision_function(X)) for model in (unlearned, oracle))
    without = np.isneginf(found).all(axis=0) & np.isneginf(expected).all(axis=0)
    found, expected = found[:, ~without], expected[:, ~without]
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    found, expected = (scores - scores.mean(axis=1, keepdims=True) for scores in (found, expected))
    return _relative(found - expected, expected)


def _problem(model: Any) -> dict[str, Any]:
    """Return what two estimators share if they solve the same ridge problem on their rows."""
    settings = model._state.settings
    scales = ("alpha", "tangent_scale", "target_scale")
    return model._state.signature() | {name: getattr(settings, name) for name in scales}


def _columns(scores: Any) -> np.ndarray:
    """Return scores of shape (n, C); for two classes the difference stands half in each."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim == 2:
        return scores
    half = np.where(np.isinf(scores), 0, scores) / 2
    columns = np.stack([-half, half], axis=1)
    columns[np.isposinf(scores), 0] = columns[np.isneginf(scores), 1] = -np.inf
    return columns


def _relative(difference: np.ndarray, reference: np.ndarray) -> float:
    """Return the ratio of two norms; zero over zero is zero."""
    numerator, denominator = np.linalg.norm(difference), np.linalg.norm(reference)
    if not denominator:
        return float("inf") if numerator else 0.0
    return float(numerator / denominator)
