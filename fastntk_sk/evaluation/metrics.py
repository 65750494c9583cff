"""How far the predictions of an unlearned model are from those of one that never saw the rows.

u stands for the unlearned model, r for the oracle (retrained on the retain set), p for what
`predict_proba` returns. A dataset is a pair (X, y).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import logsumexp

from ._checks import check_dataset, check_fitted, check_oracle, check_rows, check_sets, class_indices


def accuracy_gaps(
    unlearned: Any, oracle: Any, *, retain: Any, forget: Any, test: Any
) -> dict[str, float]:
    r"""Return the differences in accuracy to a retrained model.

    .. math::

        g_S = | acc_u(S) - acc_r(S) |, \quad S \in \{retain, forget, test\} .

    0 is ideal, more is worse. On rows that were chosen at random the right forget accuracy is the
    oracle's, about that on test rows, and not zero.

    Parameters
    ----------
    unlearned : estimator
        Fitted classifier.

    oracle : estimator
        The same, retrained without the forget set.

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
        If the oracle is the model itself or has other classes, if a set is empty, or if it holds
        labels that the models do not know.

    References
    ----------
    Kurmanji et al., "Towards Unbounded Machine Unlearning", arXiv:2302.09880.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from fastntk_sk.evaluation import accuracy_gaps
    >>> X, y = load_iris(return_X_y=True)
    >>> flipped = y.copy()
    >>> flipped[:10] = 1
    >>> u = DecisionTreeClassifier(random_state=0).fit(X, flipped)  # has unlearned nothing
    >>> r = DecisionTreeClassifier(random_state=0).fit(X[10:], y[10:])
    >>> retain, forget = (X[10:], y[10:]), (X[:10], flipped[:10])
    >>> accuracy_gaps(u, r, retain=retain, forget=forget, test=retain)
    {'retain': 0.0, 'forget': 1.0, 'test': 0.0}
    """
    check_oracle(unlearned, oracle)
    gaps = {}
    for name, (X, y) in check_sets(retain, forget, test).items():
        class_indices(y, oracle.classes_)
        of_unlearned, of_oracle = (np.mean(model.predict(X) == y) for model in (unlearned, oracle))
        gaps[name] = float(abs(of_unlearned - of_oracle))
    return gaps


def tug_of_war(unlearned: Any, oracle: Any, *, retain: Any, forget: Any, test: Any) -> float:
    r"""Return how well a model agrees with a retrained one in all three accuracies at once.

    .. math::

        ToW = (1 - g_{retain}) (1 - g_{forget}) (1 - g_{test}),

    with the gaps of :func:`accuracy_gaps`. 1 is ideal, less is worse.

    Parameters
    ----------
    unlearned, oracle, retain, forget, test
        As in :func:`accuracy_gaps`.

    Returns
    -------
    tow : float
        In [0, 1].

    Raises
    ------
    MissingOracleError, NotFittedError, ValueError
        As in :func:`accuracy_gaps`.

    References
    ----------
    Zhao et al., "What makes unlearning hard and what to do about it", arXiv:2406.01257.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.dummy import DummyClassifier
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from fastntk_sk.evaluation import tug_of_war
    >>> X, y = load_iris(return_X_y=True)
    >>> u = DummyClassifier().fit(X, y)  # always the first class
    >>> r = DecisionTreeClassifier(random_state=0).fit(X, y)
    >>> sets = {"retain": (X[:50], y[:50]), "forget": (X[:50], y[:50]), "test": (X, y)}
    >>> round(tug_of_war(u, r, **sets), 3)  # right on 50 of the 150 test rows
    0.333
    """
    gaps = accuracy_gaps(unlearned, oracle, retain=retain, forget=forget, test=test)
    return float(np.prod([1 - gap for gap in gaps.values()]))


def activation_distance(unlearned: Any, oracle: Any, X: Any) -> float:
    r"""Return the mean distance between the probabilities of two models.

    .. math::

        \frac{1}{n} \sum_i \| p_u(x_i) - p_r(x_i) \|_2 .

    0 is ideal, more is worse, sqrt(2) is the most. Three definitions circulate: this one, on
    probabilities; the distance between scores before the softmax; and that between penultimate
    features, where two trainings have no common axes. Numbers of different kinds do not compare.

    Parameters
    ----------
    unlearned, oracle : estimator
        As in :func:`accuracy_gaps`.

    X : array-like of n rows

    Returns
    -------
    distance : float

    Raises
    ------
    MissingOracleError, NotFittedError, ValueError
        As in :func:`accuracy_gaps`.

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
    check_oracle(unlearned, oracle)
    check_rows(X)
    difference = np.asarray(unlearned.predict_proba(X), dtype=np.float64) - oracle.predict_proba(X)
    return float(np.linalg.norm(difference, axis=1).mean())


def prediction_agreement(unlearned: Any, oracle: Any, X: Any) -> float:
    r"""Return the share of rows on which two models predict the same label.

    .. math::

        \frac{1}{n} \, \# \{ i : \hat y_u(x_i) = \hat y_r(x_i) \} .

    1 would be ideal, less is worse; two retrainings do not reach 1 either, so compare with what a
    second oracle reaches.

    Parameters
    ----------
    unlearned, oracle : estimator
        As in :func:`accuracy_gaps`.

    X : array-like of n rows

    Returns
    -------
    agreement : float
        In [0, 1].

    Raises
    ------
    MissingOracleError, NotFittedError, ValueError
        As in :func:`accuracy_gaps`.

    References
    ----------
    Chundawat et al., "Can Bad Teaching Induce Forgetting?", arXiv:2205.08096, compares the outputs
    of an unlearned and a retrained model in the same manner.

    Examples
    --------
    >>> from sklearn.dummy import DummyClassifier
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from fastntk_sk.evaluation import prediction_agreement
    >>> X, y = [[0], [1], [2], [3]], [0, 0, 0, 1]
    >>> u, r = DummyClassifier().fit(X, y), DecisionTreeClassifier().fit(X, y)
    >>> prediction_agreement(u, r, X)
    0.75
    """
    check_oracle(unlearned, oracle)
    check_rows(X)
    return float(np.mean(unlearned.predict(X) == oracle.predict(X)))


def margins(estimator: Any, X: Any, y: Any) -> np.ndarray:
    r"""Return by how much a model prefers the given labels.

    .. math::

        m_i = z_{y_i} - \log \sum_{c \ne y_i} e^{z_c}, \quad z = \log p(x_i),

    the log odds of the label. Larger is surer. Attacks compare margins between models; none is good
    or bad in itself.

    Parameters
    ----------
    estimator : estimator
        Fitted classifier.

    X : array-like of n rows

    y : array-like of shape (n,)

    Returns
    -------
    margins : float64 ndarray of shape (n,)
        Finite: probabilities count as at least 2.2e-308, which leaves margins within 709.

    Raises
    ------
    NotFittedError
        If the model is not fitted.

    ValueError
        If there is no row, or a label is not among `classes_`.

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
    check_fitted(estimator)
    X, y = check_dataset((X, y), "X")
    labels = class_indices(y, estimator.classes_)
    probabilities = np.asarray(estimator.predict_proba(X), dtype=np.float64)
    z = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return margins_of(z, labels)


def margins_of(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the margins of log probabilities, or of scores, which differ by a constant a row."""
    rows, others = np.arange(len(labels)), z.copy()
    others[rows, labels] = -np.inf
    return z[rows, labels] - logsumexp(others, axis=1)
