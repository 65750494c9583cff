"""Probabilities that mean what they say, from scores that no row's own label has touched."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from ..exceptions import InspectionError
from ..modes import without_modes
from ..settings import CALIBRATION
from ._learned import Learned, check_shared_features, check_two_classes
from ._without import scores_without

_BOUNDS = (math.log(1e-3), math.log(1e3))  # of the temperature, in units of target_scale


@without_modes
def calibrate(clf: Any, X: Any = None, y: Any = None) -> Any:
    r"""Fit the temperature of :meth:`FastNTKClassifier.predict_proba` on leave-one-out scores, in place.

    .. math::

        T = \arg\min_T - \sum_i w_i \log \operatorname{softmax}(f^{(-i)}(x_i) / T)_{y_i}

    with the scores of :func:`leave_one_out`, which a row's own label has not touched, so that no rows
    need to be held out. Scores and predicted labels stay. It costs one pass over all learned rows, or
    none where their features are kept.

    The temperature is a function of all learned rows and not of their sums: a deletion cannot update it
    without the other rows. It stays as it is, and receipts call deletions from then on approximate for
    this reason. After a deletion, `calibrate` with the rows that are left gives the temperature that
    they alone ask for; call it once more after :meth:`FastNTKClassifier.merge`, which drops it.

    Parameters
    ----------
    clf : FastNTKClassifier
        As in :func:`leave_one_out`. It is changed; when an error is raised, it is not.

    X : array-like, default=None
        All rows that are learned, each as often as it was learned. None takes the features that
        keep="features" has kept.

    y : array-like of shape (n,), default=None
        Their labels; by default the ledger's.

    Returns
    -------
    clf : FastNTKClassifier
        The same object.

    Raises
    ------
    UnknownSampleError, AmbiguousSampleError, InspectionError, InsufficientMemoryError
        As in :func:`leave_one_out`, and InspectionError if rows are missing, or of one class only.

    NoFeaturesError
        If X is None and features were not kept.

    References
    ----------
    .. [1] Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.metrics import log_loss
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.inspection import calibrate
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X[:500], y[:500])
    >>> before = log_loss(y[500:], clf.predict_proba(X[500:]))
    >>> log_loss(y[500:], calibrate(clf, X[:500]).predict_proba(X[500:])) < before
    True
    """
    check_two_classes(check_shared_features(clf))
    if X is None and y is not None:
        raise ValueError("Expected rows with their labels, got labels alone. Pass X, or leave y out.")
    learned = Learned.kept(clf) if X is None else Learned.find(clf, X, y, None)
    held = clf._held
    if len(learned.labels) != held.ledger.n_rows:
        raise InspectionError(
            f"Expected all {held.ledger.n_rows} rows that are learned, got {len(learned.labels)}. Pass "
            "every row once for each time it was learned."
        )
    scores, rows = scores_without(learned), np.arange(len(learned.labels))
    own = scores[rows, learned.labels]
    told = np.isfinite(own)  # not the only row of its class
    scale = held.state.settings.target_scale

    def loss(log_temperature: float) -> float:
        sharpness = math.exp(-log_temperature) / scale
        likelihood = sharpness * own[told] - logsumexp(sharpness * scores[told], axis=1)
        return -float(learned.weights[told] @ likelihood)

    temperature = scale * math.exp(minimize_scalar(loss, bounds=_BOUNDS, method="bounded").x)
    chosen_by = tuple(dict.fromkeys((*held.state.settings.searched_by, CALIBRATION)))
    state = held.state.with_settings(temperature=temperature, searched_by=chosen_by)
    after = replace(held, state=state)
    return clf._commit(after.adapter(clf.classes_), after, before=held)
