"""How a model grows with its rows, from the sums of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch, check_random_state
from sklearn.utils.validation import check_consistent_length

from ..modes import without_modes
from ..sums.ridge import solve
from ..validation import class_indices
from ._learned import Learned, check_shared_features, features_of


@without_modes
def learning_curve(
    clf: Any,
    X: Any,
    y: Any,
    X_val: Any,
    y_val: Any,
    *,
    train_sizes: Sequence[float] = (0.1, 0.325, 0.55, 0.775, 1.0),
    random_state: Any = None,
) -> Bunch:
    """Return the accuracy on validation rows by the number of learned rows.

    Rows enter sums of their own, in an order that is drawn once, and at each size one solve gives the
    model of a fit on so many rows; alpha="auto" chooses anew. It costs one pass, where
    :func:`sklearn.model_selection.learning_curve` needs one for each size, and none where features are
    kept. The sums are gone afterwards.

    Parameters
    ----------
    clf, X, y
        As in :func:`leave_one_out`.

    X_val, y_val : array-like
        Rows to judge by, which should not be learned, and their labels.

    train_sizes : sequence of float, default=(0.1, 0.325, 0.55, 0.775, 1.0)
        Parts of the rows, in (0, 1]. The first has one row at least.

    random_state : int, RandomState instance or None, default=None
        Draws the order.

    Returns
    -------
    curve : Bunch
        - `train_sizes`: ndarray of shape (n_sizes,), numbers of rows;
        - `test_scores`: ndarray of shape (n_sizes,), accuracies;
        - `alphas`: ndarray of shape (n_sizes,), the ridge of each model.

    Raises
    ------
    UnknownSampleError, AmbiguousSampleError, InspectionError, InsufficientMemoryError
        As in :func:`leave_one_out`.

    ValueError
        If a size is not in (0, 1], there is no validation row, or no class of the model for its label.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.inspection import learning_curve
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X[:800], y[:800])
    >>> curve = learning_curve(clf, X[:800], y[:800], X[800:], y[800:], random_state=0)
    >>> curve.train_sizes.tolist(), bool(curve.test_scores[-1] > curve.test_scores[0])
    ([80, 260, 440, 620, 800], True)
    """
    state, parts = check_shared_features(clf), np.asarray(train_sizes, dtype=float)
    if not len(parts) or not ((parts > 0) & (parts <= 1)).all():
        raise ValueError(f"Expected train_sizes in (0, 1], got {list(train_sizes)}.")
    labels = class_indices(y_val, clf.classes_)
    check_consistent_length(X_val, labels)
    learned = Learned.find(clf, X, y, None)
    learned.check_memory(len(labels))
    order = check_random_state(random_state).permutation(len(learned.labels))
    sizes = np.unique(np.maximum(1, np.round(parts * len(order)).astype(int)))
    rows_val = torch.cat(list(features_of(clf, X_val, "validation"))).double()
    settings, statistics = state.settings, state.model.empty_statistics()
    scores, alphas = [], []
    for start, stop in pairwise([0, *sizes.tolist()]):
        for places, _, h in learned.only(order[start:stop]).blocks("learning curve"):
            held, weights = (torch.from_numpy(of[places]) for of in (learned.labels, learned.weights))
            statistics.add(h, h.new_zeros(len(h), settings.n_classes, 0), held, weights)
        solution = solve(
            statistics,
            alpha=settings.alpha,
            tangent_scale=settings.tangent_scale,
            target_scale=settings.target_scale,
        )
        found = (rows_val @ solution.W.T).numpy()
        found[:, (statistics.counts == 0).numpy()] = -np.inf
        scores.append(float((found.argmax(1) == labels).mean()))
        alphas.append(solution.alpha)
    return Bunch(train_sizes=sizes, test_scores=np.array(scores), alphas=np.array(alphas))
