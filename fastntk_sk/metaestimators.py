"""Forgetting inside pipelines and searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from .classifier import FastNTKClassifier


def unlearn(
    estimator: BaseEstimator,
    X_forget: Any = None,
    y_forget: Any = None,
    *,
    sample_ids: Any = None,
    copies: str = "one",
    on_unknown: str = "raise",
    request_id: str | Sequence[str] = (),
    strict: bool = False,
) -> BaseEstimator:
    """Forget rows in the classifier inside a fitted Pipeline or search.

    Parameters
    ----------
    estimator : estimator
        A fitted `FastNTKClassifier`, a `Pipeline` that ends in one, or a search such as
        `GridSearchCV` (refitted) over either. Changed in place.

    X_forget : array-like, default=None
        Rows as they were passed to the fit of `estimator`; None as in :meth:`FastNTKClassifier.unlearn`.

    y_forget, sample_ids, copies, on_unknown, request_id
        As in :meth:`FastNTKClassifier.unlearn`.

    strict : bool, default=False
        Raise, and change nothing, where the receipt would not say that the deletion is exact: fitted
        steps before the classifier, a search, a trained anchor or the backbone's own training have
        seen the rows, or numbers have drifted.

    Returns
    -------
    estimator : estimator
        The same object.

    Raises
    ------
    TypeError
        If there is no `FastNTKClassifier` inside.

    InexactDeletionError
        With `strict`, if the deletion would not be exact; the message says why. Nothing was changed.

    Warns
    -----
    InexactDeletionWarning
        If fitted steps before the classifier have seen the rows; it names them.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import FunctionTransformer
    >>> from fastntk_sk import FastNTKClassifier, unlearn
    >>> X, y = load_iris(return_X_y=True)
    >>> pipeline = make_pipeline(FunctionTransformer(), FastNTKClassifier(random_state=0)).fit(X, y)
    >>> unlearn(pipeline, X[:5])[-1].n_samples_learned_
    145
    """
    seen_by: list[str] = []
    searched_by: list[str] = []
    inner: Any = estimator
    X: Any = X_forget
    while not isinstance(inner, FastNTKClassifier):
        if isinstance(inner, Pipeline):
            check_is_fitted(inner)
            for name, step in inner.steps[:-1]:
                if step is None or step == "passthrough":
                    continue
                X = None if X is None else step.transform(X)
                if get_tags(step).requires_fit:
                    seen_by.append(f"{name!r} ({type(step).__name__})")
            inner = inner.steps[-1][1]
        elif hasattr(inner, "best_estimator_"):
            searched_by.append(type(inner).__name__)
            inner = inner.best_estimator_
        else:
            check_is_fitted(estimator)
            raise TypeError(
                "Expected a FastNTKClassifier, a Pipeline that ends in one or a refitted search over "
                f"either, got {type(inner).__name__}. Call unlearn on the classifier inside it."
            )
    inner._forget(
        X,
        y_forget,
        sample_ids,
        copies,
        on_unknown,
        request_id,
        seen_by=seen_by,
        searched_by=searched_by,
        strict=strict,
    )
    return estimator
