"""Which labels are doubtful, and which rows are alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.utils import Bunch
from sklearn.utils.validation import _num_samples

from ..modes import without_modes
from ..sums.memory import require
from ..validation import check_threshold
from ._learned import Learned, check_shared_features, check_two_classes, features_of
from ._without import scores_without

_AT_ONCE = 1024  # rows that are compared with all others together
_ROUNDING = 1e-6  # of a cosine in float32


@without_modes
def label_issues(clf: Any, X: Any, y: Any = None, *, groups: Any = None) -> Bunch:
    """Return the learned rows whose label the model without them disbelieves, the most doubtful first.

    The model that never learned a row (or its group) gives it probabilities: a softmax of
    :func:`leave_one_out`, sharpened as in :meth:`FastNTKClassifier.predict_proba`. They are out of
    sample, as those of a cross-validation are, for the price of one pass. Where cleanlab is installed
    (extra "inspection"), its `find_label_issues` chooses rows and ranks them, by the probability of
    their own label; else, and where all labels are the same, these are the rows for which another class
    is more probable.

    Parameters
    ----------
    clf, X, y, groups
        As in :func:`leave_one_out`, which has the same limits.

    Returns
    -------
    issues : Bunch
        - `indices`: ndarray of shape (n_issues,), rows of X;
        - `self_confidence`: ndarray of shape (n,), the probability of each row's own label;
        - `pred_probs`: ndarray of shape (n, n_classes), as cleanlab takes it;
        - `suggested`: ndarray of shape (n,), the most probable label of each row.

    Raises
    ------
    UnknownSampleError, AmbiguousSampleError, InspectionError, InsufficientMemoryError, ValueError
        As in :func:`leave_one_out`, and InspectionError if rows of one class alone are learned.

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
    check_two_classes(check_shared_features(clf))
    learned = Learned.find(clf, X, y, groups)
    scores, labels = scores_without(learned), learned.labels
    probabilities = softmax(clf._adapter.sharpness * scores, axis=1)
    confidence = probabilities[np.arange(len(labels)), labels]
    find_label_issues = _cleanlab()
    if find_label_issues is None or (labels == labels[0]).all():
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


def _cleanlab() -> Any:
    """Return cleanlab's `find_label_issues`, or None where it is not installed."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return None
    return find_label_issues


@without_modes
def duplicates(clf: Any, X: Any, *, threshold: float = 0.99) -> Bunch:
    """Return pairs of rows that are the same, or nearly, whatever their labels.

    Two rows are alike by the cosine of the angle between their features, less the mean over the rows
    that are learned: a picture that was resized or encoded again has 0.8 to 1, by its content
    and the quality; the default finds pixels that are nearly the same.

    Parameters
    ----------
    clf : FastNTKClassifier
        As in :func:`leave_one_out`.

    X : array-like
        Rows, which need not be learned. It takes one pass, and O(n^2 k) operations in blocks.

    threshold : float, default=0.99
        The least similarity of a pair.

    Returns
    -------
    duplicates : Bunch
        Of the pairs, the most alike first:

        - `pairs`: ndarray of shape (n_pairs, 2), rows of X, the earlier one first;
        - `similarity`: ndarray of shape (n_pairs,);
        - `same`: ndarray of shape (n_pairs,), bool, whether the very same content enters the backbone.

    Raises
    ------
    InspectionError
        As in :func:`leave_one_out`.

    InsufficientMemoryError
        If the features of all rows do not fit.

    ValueError
        If no similarity can reach `threshold`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.inspection import duplicates
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X[:100], y[:100])
    >>> found = duplicates(clf, np.concatenate([X[:50], X[7:8], X[8:9] * 1.01]))
    >>> found.pairs.tolist(), found.same.tolist()
    ([[7, 50], [8, 51]], [True, False])
    """
    check_threshold(threshold)
    state = check_shared_features(clf)
    n, digests, (width, _) = _num_samples(X), list[bytes](), state.model.sizes
    require(
        4 * n * width + state.model.memory_needed(),
        f"Features of {n:,} rows need",
        "Compare fewer rows at once.",
    )
    directions, start = torch.empty(n, width, dtype=torch.float32), 0
    for h in features_of(clf, X, "comparing", digests):
        directions[start : start + len(h)] = clf._held.directions(h)
        start += len(h)
    pairs, similarity = [np.zeros((0, 2), dtype=np.int64)], [np.zeros(0)]
    for start in range(0, n, _AT_ONCE):
        alike = (directions[start : start + _AT_ONCE] @ directions[start:].T).numpy().astype(np.float64)
        first, second = np.nonzero(np.triu(alike >= threshold - _ROUNDING, k=1))
        pairs.append(start + np.stack([first, second], axis=1))
        similarity.append(alike[first, second])
    found, values = np.concatenate(pairs), np.concatenate(similarity)
    same = np.array([digests[one] == digests[other] for one, other in found], dtype=bool)
    values = np.where(same, 1.0, values.clip(max=1 - _ROUNDING))
    best = np.argsort(-values, kind="stable")[: int((values >= threshold).sum())]
    return Bunch(pairs=found[best], similarity=values[best], same=same[best])
