"""Scores without a row, and what forgetting a row does to others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from sklearn.utils.validation import check_consistent_length
from torch import Tensor

from ..modes import without_modes
from ..validation import class_indices
from ._learned import Learned, check_shared_features, check_two_classes, features_of

_NUMBERS = 2**23  # of scores of validation rows without a group that are held at once


@without_modes
def leave_one_out(clf: Any, X: Any, y: Any = None, *, groups: Any = None) -> np.ndarray:
    r"""Return the scores of learned rows under the model that never learned them.

    .. math:: t_i - \frac{e_i}{1 - w_i h_{ii}}, \quad h_{ii} = x_i^T (A + \alpha D)^{-1} x_i

    with the errors e = t - f of the fitted model and D the identity, but zero at an intercept without
    ridge. It is what :meth:`FastNTKClassifier.unlearn` of the row and `decision_function` would give, up
    to rounding and in float64, for one pass over the rows, or none where their features are kept. Of a
    row that was learned twice, one copy is left out.

    It is exact at the alpha in force (`alpha_`). With alpha="auto" a deletion may choose another value
    of the grid, which this does not follow.

    Parameters
    ----------
    clf : FastNTKClassifier
        Fitted, with its private state, and with features that all classes share: a ladder, the head
        alone or kernel="pseudo".

    X : array-like
        Learned rows, all of them or some.

    y : array-like of shape (n,), default=None
        Their labels; by default the ledger's.

    groups : array-like of shape (n,), default=None
        Rows of one value are left out together, such as those of a person.

    Returns
    -------
    scores : ndarray of shape (n, n_classes)
        Float64. A class that has no row but those left out has -inf.

    Raises
    ------
    UnknownSampleError, AmbiguousSampleError
        If rows are not learned, or were several times with different labels and y is not given.

    InspectionError
        If classes have tangents of their own, or the anchor was trained on the rows.

    InsufficientMemoryError
        If the scores, or the matrix of the largest group (its number of rows squared), do not fit.

    ValueError
        If a group is all that is learned, or rows have None or NaN for a group.

    References
    ----------
    .. [1] Cook and Weisberg, "Residuals and Influence in Regression", 1982.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.inspection import leave_one_out
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(trainable="head", alpha=0.1, random_state=0).fit(X, y)
    >>> scores = leave_one_out(clf, X, y)
    >>> without = clf.unlearn(X[70:71]).decision_function(X[70:71])
    >>> bool(np.allclose(scores[70], without, rtol=1e-9))
    True
    """
    check_shared_features(clf)
    return scores_without(Learned.find(clf, X, y, groups))


def scores_without(learned: Learned) -> np.ndarray:
    """Return what `leave_one_out` does."""
    learned.check_memory()
    scores = np.empty((len(learned.labels), len(learned.clf.classes_)))
    model = learned.solution()
    for places, sizes, h in learned.blocks("leaving out"):
        targets, _, without = _without(learned, model, places, sizes, h)
        scores[places] = (targets - without).numpy()
    emptied = np.repeat(learned.emptied(), learned.sizes, axis=0)
    scores[learned.order] = np.where(emptied, -np.inf, scores[learned.order])
    return scores


def _without(
    learned: Learned, model: Any, places: np.ndarray, sizes: np.ndarray, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return targets, whitened rows, and errors without their groups, of one block."""
    targets = model.targets(torch.from_numpy(learned.labels[places]))
    weights, rows = torch.from_numpy(learned.weights[places]), model.whiten(h)
    errors = targets - model.scores(h)
    return targets, rows, model.errors_without(rows, errors, weights, torch.from_numpy(sizes))


@without_modes
def influence(clf: Any, X: Any, y: Any, X_val: Any, y_val: Any, *, groups: Any = None) -> Bunch:
    r"""Return by how much forgetting each row changes loss and margin on validation rows.

    .. math:: f_v - f_v^{(-i)} = w_i \, x_v^T (A + \alpha D)^{-1} x_i \, \frac{e_i}{1 - w_i h_{ii}}

    is the change of a score by one deletion, no estimate of it: TRAK and influence functions leave out
    the denominator, or linearise. It costs one pass over both sets (none over the learned rows where
    their features are kept) and O(n n_val (k + C)) operations, in blocks.

    Parameters
    ----------
    clf, X, y, groups
        As in :func:`leave_one_out`, which has the same limits.

    X_val : array-like
        Rows to judge by. They need not be, and should not be, learned.

    y_val : array-like of shape (n_val,)
        Their labels.

    Returns
    -------
    influence : Bunch
        Of ndarrays of shape (n,), or (n_groups,) in the order of ``numpy.unique(groups)``:

        - `loss`: by how much the mean squared loss :math:`\|f_v - t_v\|^2` grows when the row (or group)
          is forgotten; negative for a row that does harm;
        - `margin`: by how much the mean margin :math:`f_{v, y} - \max_{c \ne y} f_{v, c}` grows;
          positive for a row that does harm. A class competes as long as it has rows, and where one
          alone is left the margin is infinite;
        - `groups`: the groups, or the numbers of the rows.

    Raises
    ------
    UnknownSampleError, AmbiguousSampleError, InspectionError, InsufficientMemoryError
        As in :func:`leave_one_out`, and InspectionError if rows of one class alone are learned.

    ValueError
        As in :func:`leave_one_out`, and if there is no validation row, or no class of the model for its
        label.

    References
    ----------
    .. [1] Koh and Liang, "Understanding Black-box Predictions via Influence Functions",
       arXiv:1703.04730.
    .. [2] Park et al., "TRAK: Attributing Model Behavior at Scale", arXiv:2303.14186.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.inspection import influence
    >>> X, y = load_iris(return_X_y=True)
    >>> wrong = y[::2].copy()
    >>> wrong[30] = 2
    >>> clf = FastNTKClassifier(trainable="head", alpha=0.1, random_state=0).fit(X[::2], wrong)
    >>> int(influence(clf, X[::2], wrong, X[1::2], y[1::2]).loss.argmin())
    30
    """
    state = check_shared_features(clf)
    check_two_classes(state)
    learned = Learned.find(clf, X, y, groups)
    labels = torch.from_numpy(class_indices(y_val, clf.classes_))
    check_consistent_length(X_val, labels)
    learned.check_memory(len(labels))
    model = learned.solution()
    parts = [(model.whiten(h), model.scores(h)) for h in features_of(clf, X_val, "validation")]
    rows_val, scores = (torch.cat(part) for part in zip(*parts, strict=True))
    errors = model.targets(labels) - scores
    seen = torch.from_numpy(state.class_rows > 0)
    margin = _margins(scores, labels, seen)
    emptied = torch.from_numpy(learned.emptied())
    loss_change, margin_change, group = [], [], 0
    for places, sizes, h in learned.blocks("influence"):
        _, rows, without = _without(learned, model, places, sizes, h)
        weighted = without * torch.from_numpy(learned.weights[places])[:, None]
        products = model.products(rows_val, rows)
        for first, last in _spans(sizes, len(labels) * errors.shape[1]):
            here = slice(int(sizes[:first].sum()), int(sizes[:last].sum()))
            change = _by_group(products[:, here], weighted[here], sizes[first:last])
            loss_change.append((change * (change + 2 * errors[:, None])).sum(2).mean(0))
            left = ~emptied[group + first : group + last]
            without_them = _margins(scores[:, None] - change, labels, left)
            margin_change.append((without_them - margin[:, None]).mean(0))
        group += len(sizes)
    names = np.arange(len(learned.labels)) if groups is None else np.unique(groups)
    return Bunch(
        loss=torch.cat(loss_change).numpy(), margin=torch.cat(margin_change).numpy(), groups=names
    )


def _spans(sizes: np.ndarray, numbers: int) -> list[tuple[int, int]]:
    """Return spans of groups of which so many numbers a row fit at once."""
    at_once = max(1, _NUMBERS // (numbers * int(sizes.max())))
    return [(first, min(first + at_once, len(sizes))) for first in range(0, len(sizes), at_once)]


def _by_group(products: Tensor, weighted: Tensor, sizes: np.ndarray) -> Tensor:
    """Return the changes (n_val, n_groups, C) of scores, by what is taken away with each group."""
    if (sizes == 1).all():
        return products[:, :, None] * weighted
    parts = torch.split(torch.arange(len(weighted)), sizes.tolist())
    return torch.stack([products[:, part] @ weighted[part] for part in parts], dim=1)


def _margins(scores: Tensor, labels: Tensor, seen: Tensor) -> Tensor:
    """Return the margins of scores (n_val, ..., C) among classes with rows, `seen` (..., C)."""
    among = torch.where(seen, scores, -torch.inf)
    index = labels.view(-1, *[1] * (scores.ndim - 1)).expand(*scores.shape[:-1], 1)
    true = scores.gather(-1, index)[..., 0]
    return true - among.scatter(-1, index, -torch.inf).amax(-1)
