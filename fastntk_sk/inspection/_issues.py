"""Which labels are doubtful, and which rows are alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.utils import Bunch

from ..validation import class_indices
from ._learned import check_shared_features, features_of
from ._without import leave_one_out

_AT_ONCE = 1024  # rows that are compared with all others together


def label_issues(clf: Any, X: Any, y: Any = None, *, groups: Any = None) -> Bunch:
    """Return the learned rows whose label the model without them disbelieves, the most doubtful first.

    The model that never learned a row (or its group) gives it probabilities: a softmax of
    :func:`leave_one_out`, sharpened as in :meth:`FastNTKClassifier.predict_proba`. They are out of
    sample, as those of a cross-validation are, for the price of one pass. Where cleanlab is installed
    (extra "inspection"), its `find_label_issues` chooses rows and ranks them, by the probability of
    their own label; else these are the rows for which another class is more probable.

    Parameters
    ----------
    clf, X, y, groups
        As in :func:`leave_one_out`, which has the same limits and raises the same errors.

    Returns
    -------
    issues : Bunch
        - `indices`: ndarray of shape (n_issues,), rows of X;
        - `self_confidence`: ndarray of shape (n,), the probability of each row's own label;
        - `pred_probs`: ndarray of shape (n, n_classes), as cleanlab takes it;
        - `suggested`: ndarray of shape (n,), the most probable label of each row.

    References
    ----------
    .. [1] Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
       arXiv:1911.00068.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.inspection import label_issues
    >>> X, y = load_iris(return_X_y=True)
    >>> y[7] = 2
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y)
    >>> issues = label_issues(clf, X)
    >>> int(issues.indices[0]), int(issues.suggested[7])
    (7, 0)
    """
    scores = leave_one_out(clf, X, y, groups=groups)
    labels = learned_labels(clf, X, y)
    probabilities = softmax(clf._adapter.sharpness * scores, axis=1)
    confidence = probabilities[np.arange(len(labels)), labels]
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        doubtful = np.flatnonzero(scores.argmax(1) != labels)
        indices = doubtful[np.argsort(confidence[doubtful], kind="stable")]
    else:
        indices = find_label_issues(
            labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    return Bunch(
        indices=indices,
        self_confidence=confidence,
        pred_probs=probabilities,
        suggested=clf.classes_[scores.argmax(1)],
    )
