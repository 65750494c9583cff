"""A scorer for choosing hyper-parameters by how well a model predicts and how well it forgets."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from sklearn.utils import _safe_indexing

from ..exceptions import UnknownSampleError
from ..metaestimators import unlearn
from ._checks import check_dataset
from .metrics import accuracies


def make_forget_scorer(
    X_forget: Any, y_forget: Any, *, target: float | str = "validation", weight: float = 1.0
) -> Callable[[Any, Any, Any], float]:
    r"""Make a scorer for searches such as `GridSearchCV` that also measures how well a model forgets.

    For each fold, a copy of the fitted model unlearns those of the given rows that it has learned. The
    score of the copy is

    .. math::

        acc(validation) - weight \cdot | acc(forgotten) - target | ,

    where larger is better and 1 is the maximum. It needs no oracle: rows that were chosen at random and
    are forgotten are predicted like rows that were never seen, and the validation fold measures those.

    Parameters
    ----------
    X_forget, y_forget : array-like
        Rows and labels of the training data, exactly as they are passed to the search. Those in a
        validation fold were never learned, and are skipped there.

    target : "validation" or float in [0, 1], default="validation"
        The right accuracy on forgotten rows: that on the validation fold for rows chosen at random, for
        labels flipped at random about (1 - accuracy) / (n_classes - 1), for a whole class 0.

    weight : float, default=1.0

    Returns
    -------
    scorer : callable
        `scorer(estimator, X, y) -> float`, for `scoring=`. It does not change the estimator, a
        `FastNTKClassifier` or a `Pipeline` that ends in one.

    Raises
    ------
    ValueError
        If a parameter is not valid. The scorer raises it if a model has learned none of the rows.

    Notes
    -----
    Hyper-parameters that were chosen with the forgotten rows have seen them, which an exact deletion
    does not undo. Choose them before there is a request, by forgetting rows that may stay.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import GridSearchCV
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.evaluation import make_forget_scorer
    >>> X, y = load_iris(return_X_y=True)
    >>> scorer = make_forget_scorer(X[::10], y[::10])
    >>> search = GridSearchCV(
    ...     FastNTKClassifier(random_state=0), {"alpha": [0.1, 100.0]}, scoring=scorer, cv=3
    ... )
    >>> search.fit(X, y).best_params_
    {'alpha': 0.1}
    """
    X_forget, y_forget = check_dataset((X_forget, y_forget), "X_forget")
    if target != "validation" and not (isinstance(target, Real) and 0 <= target <= 1):
        raise ValueError(f"Expected target to be 'validation' or a number in [0, 1], got {target!r}.")
    if not 0 <= weight < math.inf:
        raise ValueError(f"Expected weight to be a finite number of at least 0, got {weight}.")
    return partial(_score, (X_forget, y_forget), target, weight)


def _score(
    forget: tuple[Any, np.ndarray], target: float | str, weight: float, estimator: Any, X: Any, y: Any
) -> float:
    """Return the score of a fitted estimator on a validation fold."""
    model, (X_forget, y_forget) = copy.deepcopy(estimator), forget
    try:
        unlearn(model, X_forget, y_forget)
    except UnknownSampleError as error:
        learned = np.setdiff1d(np.arange(len(y_forget)), error.indices)
        if not len(learned):
            raise ValueError(
                "Expected rows to forget that the model has learned, got none. Pass rows exactly as "
                "they are passed to the search, and enough of them that each fold learns some."
            ) from error
        X_forget, y_forget = _safe_indexing(X_forget, learned), y_forget[learned]
        unlearn(model, X_forget, y_forget)
    accuracy = accuracies(model, {"validation": (X, y), "forget": (X_forget, y_forget)})
    right = accuracy["validation"] if target == "validation" else float(target)
    return accuracy["validation"] - weight * abs(accuracy["forget"] - right)
