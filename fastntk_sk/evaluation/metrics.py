"""How far an unlearned model is from one that never saw the rows.

In the formulas, u is the unlearned model, r is the oracle (retrained on the retain set) and p is what
`predict_proba` returns. A dataset is a pair (X, y).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import logsumexp

from ..classifier import FastNTKClassifier
from ..state import signature
from ..validation import class_indices
from ._checks import Classifier, check_dataset, check_fitted, check_oracle, check_rows, check_sets


def accuracies(model: Classifier, sets: dict[str, tuple[Any, np.ndarray]]) -> dict[str, float]:
    """Return the accuracy of a model on each dataset."""
    return {name: float(np.mean(model.predict(X) == y)) for name, (X, y) in sets.items()}


def accuracy_gaps(
    unlearned: Any, oracle: Any, *, retain: Any, forget: Any, test: Any
) -> dict[str, float]:
    r"""Return the differences in accuracy from a retrained model.

    .. math::

        g_S = | acc_u(S) - acc_r(S) |, \quad S \in \{retain, forget, test\} .

    0 is ideal, more is worse. On rows that were chosen at random the right forget accuracy is the
    oracle's, which is about that on test rows, and not zero.

    Parameters
    ----------
    unlearned, oracle : classifier or Module
        Fitted, with what :class:`Classifier` names; or plain torch modules, which return scores of the
        classes 0, 1, ... for X as it is. The oracle was retrained without the forget set.

    retain, forget, test : pair (X, y)

    Returns
    -------
    gaps : dict of str to float
        "retain", "forget" and "test", each in [0, 1].

    Raises
    ------
    MissingOracleError
        If `oracle` is None.

    NotFittedError
        If a model is not fitted.

    ValueError
        If the oracle is the model itself or has other classes, or if a set is empty or holds labels that
        the models do not know.

    References
    ----------
    Kurmanji et al., "Towards Unbounded Machine Unlearning", arXiv:2302.09880.

    Examples
    --------
    >>> from sklearn.dummy import DummyClassifier
    >>> from fastntk_sk.evaluation import accuracy_gaps
    >>> X, y = [[0], [1], [2], [3]], [0, 0, 1, 0]
    >>> u, r = (DummyClassifier(strategy="constant", constant=c).fit(X, y) for c in (0, 1))
    >>> sets = {"retain": (X[:2], y[:2]), "forget": (X[2:], y[2:]), "test": (X, y)}
    >>> accuracy_gaps(u, r, **sets)
    {'retain': 1.0, 'forget': 0.0, 'test': 0.5}
    """
    sets = check_sets(retain, forget, test)
    unlearned, oracle = check_oracle(unlearned, oracle, sets["retain"][0])
    for _, y in sets.values():
        class_indices(y, oracle.classes_)
    of_unlearned, of_oracle = accuracies(unlearned, sets), accuracies(oracle, sets)
    return {name: abs(of_unlearned[name] - of_oracle[name]) for name in sets}


def tug_of_war(unlearned: Any, oracle: Any, *, retain: Any, forget: Any, test: Any) -> float:
    r"""Return how well a model agrees with a retrained one in all three accuracies at once.

    .. math::

        ToW = (1 - g_{retain}) (1 - g_{forget}) (1 - g_{test}),

    with the gaps of :func:`accuracy_gaps`. 1 is ideal, less is worse.

    Parameters
    ----------
    unlearned, oracle, retain, forget, test
        As in :func:`accuracy_gaps`, which raises the same errors.

    Returns
    -------
    tow : float
        In [0, 1].

    References
    ----------
    Zhao et al., "What makes unlearning hard and what to do about it", arXiv:2406.01257.

    Examples
    --------
    >>> from sklearn.dummy import DummyClassifier
    >>> from fastntk_sk.evaluation import tug_of_war
    >>> X, y = [[0], [1], [2], [3]], [0, 1, 1, 0]
    >>> u, r = (DummyClassifier(strategy="constant", constant=c).fit(X, y) for c in (0, 1))
    >>> tug_of_war(u, r, retain=(X, y), forget=(X[:2], y[:2]), test=(X[:3], y[:3]))  # 1 (1) (2/3)
    0.6666666666666667
    """
    gaps = accuracy_gaps(unlearned, oracle, retain=retain, forget=forget, test=test)
    return float(np.prod([1 - gap for gap in gaps.values()]))


def activation_distance(unlearned: Any, oracle: Any, X: Any) -> float:
    r"""Return the mean distance between the probabilities of two models.

    .. math::

        \frac{1}{n} \sum_i \| p_u(x_i) - p_r(x_i) \|_2 .

    0 is ideal, more is worse, sqrt(2) is the maximum. Three definitions are in use: this one, on
    probabilities; the distance between scores before the softmax; and the distance between
    penultimate features, where two trainings have no common axes. Their values are not comparable.

    Parameters
    ----------
    unlearned, oracle : classifier or Module
        As in :func:`accuracy_gaps`, which raises the same errors.

    X : array-like of n rows

    Returns
    -------
    distance : float

    References
    ----------
    Golatkar et al., "Mixed-Privacy Forgetting in Deep Networks", arXiv:2012.13431.

    Examples
    --------
    >>> from sklearn.dummy import DummyClassifier
    >>> from fastntk_sk.evaluation import activation_distance
    >>> u = DummyClassifier(strategy="constant", constant=0).fit([[0], [0]], [0, 1])
    >>> r = DummyClassifier(strategy="constant", constant=1).fit([[0], [0]], [0, 1])
    >>> round(activation_distance(u, r, [[0]]), 4)
    1.4142
    """
    check_rows(X)
    unlearned, oracle = check_oracle(unlearned, oracle, X)
    difference = np.asarray(unlearned.predict_proba(X), dtype=np.float64) - oracle.predict_proba(X)
    return float(np.linalg.norm(difference, axis=1).mean())


def margins(estimator: Any, X: Any, y: Any) -> np.ndarray:
    r"""Return by how much a model prefers the given labels.

    .. math::

        m_i = z_{y_i} - \log \sum_{c \ne y_i} e^{z_c}, \quad z = \log p(x_i),

    the log odds of the label, which attacks compare between models.

    Parameters
    ----------
    estimator : classifier or Module
        As in :func:`accuracy_gaps`.

    X, y : array-like

    Returns
    -------
    margins : float64 ndarray of shape (n,)
        Finite: probabilities count as at least 2.2e-308, which keeps margins within 709.

    Raises
    ------
    NotFittedError, ValueError
        If the model is not fitted, if there is no row, or if a label is not among `classes_`.

    References
    ----------
    Carlini et al., "Membership Inference Attacks From First Principles", arXiv:2112.03570.

    Examples
    --------
    >>> from sklearn.dummy import DummyClassifier
    >>> from fastntk_sk.evaluation import margins
    >>> clf = DummyClassifier().fit([[0]] * 4, [0, 0, 0, 1])  # p = (3/4, 1/4)
    >>> margins(clf, [[0], [0]], [0, 1]).round(4)  # log 3 and -log 3
    array([ 1.0986, -1.0986])
    """
    X, y = check_dataset((X, y), "X")
    estimator = check_fitted(estimator, X)
    labels = class_indices(y, estimator.classes_)
    probabilities = np.asarray(estimator.predict_proba(X), dtype=np.float64)
    return margins_of(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)), labels)


def margins_of(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the margins of log probabilities, or of scores that differ from them by row constants."""
    rows, others = np.arange(len(labels)), z.copy()
    others[rows, labels] = -np.inf
    return z[rows, labels] - logsumexp(others, axis=1)


def algebraic_gap(unlearned: Any, refit: Any) -> float:
    r"""Return how far a deletion is from a refit of the same linearised model.

    .. math::

        \| \theta_u - \theta_r \| / \| \theta_r \|, \quad \theta = (W, \delta) .

    0 is ideal; rounding leaves about 1e-12, and more than 1e-6 is a mistake or numerical drift. It
    says nothing about what the linearisation itself has seen: see :func:`linearisation_gap`.

    Parameters
    ----------
    unlearned, refit : FastNTKClassifier
        The latter fitted on the retain set at the same anchor, with the same parameters and seed.

    Returns
    -------
    gap : float

    Raises
    ------
    MissingOracleError, NotFittedError
        As in :func:`accuracy_gaps`.

    TypeError
        If a model is not a FastNTKClassifier.

    ValueError
        If the two are not the same linearised model; the message says in what they differ.

    References
    ----------
    Li et al., arXiv:2312.14923.

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
        if not isinstance(model, FastNTKClassifier):
            raise TypeError(f"Expected a FastNTKClassifier, got {type(model).__name__}.")
    ours, theirs = signature(unlearned._state.model), signature(refit._state.model)
    differing = [name for name, value in ours.items() if theirs[name] != value]
    if differing:
        raise ValueError(
            f"Expected a refit of the same linearised model, got one that differs in {differing}. "
            "Fit it with the same parameters and an integer random_state; for anchor='finetuned' a "
            "refit moves the anchor: compare with copy.deepcopy(unlearned).rebuild(X_retain)."
        )
    found, expected = (
        np.concatenate([model.readout_.ravel(), model.displacement_]).astype(np.float64)
        for model in (unlearned, refit)
    )
    return _relative_gap(found, expected)


def linearisation_gap(unlearned: Any, oracle: Any, X: Any) -> float:
    r"""Return how far the scores of an unlearned model are from those of a real retraining.

    .. math::

        \| F_u - F_r \| / \| F_r \|, \quad F_{ic} = f_c(x_i) - \frac{1}{C} \sum_k f_k(x_i),

    with the scores f of `decision_function`. 0 is ideal, more is worse; compare with the gap of a
    second oracle. Unlike :func:`algebraic_gap`, this gap includes what the anchor has seen and the
    randomness of a second training.

    Parameters
    ----------
    unlearned, oracle : classifier or Module
        As in :func:`accuracy_gaps`, which raises the same errors; with `decision_function`.

    X : array-like of n rows

    Returns
    -------
    gap : float
        Infinite if the models differ in which classes have no score (-inf).

    References
    ----------
    Achille et al., "LQF: Linear Quadratic Fine-Tuning", arXiv:2012.11140.

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
    check_rows(X)
    unlearned, oracle = check_oracle(unlearned, oracle, X)
    scores = [np.asarray(model.decision_function(X), np.float64) for model in (unlearned, oracle)]
    without_rows, expected_without = (np.where(np.isinf(each), each, 0) for each in scores)
    if not np.array_equal(without_rows, expected_without):
        return float("inf")
    found, expected = map(np.ma.masked_invalid, scores)
    if found.ndim == 2:  # a binary score is a difference already
        found, expected = (each - each.mean(axis=1, keepdims=True) for each in (found, expected))
    return _relative_gap(found.filled(0), expected.filled(0))


def _relative_gap(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the norm of a difference over the norm of what was expected; zero over zero is zero."""
    difference, reference = np.linalg.norm(found - expected), np.linalg.norm(expected)
    if not reference:
        return float("inf") if difference else 0.0
    return float(difference / reference)
