"""Forgetting: the methods of the classifier, and the way to it inside meta-estimators."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import column_or_1d, get_tags
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from .backbones.inputs import Rows, content
from .exceptions import (
    EmptyClassWarning,
    FastNTKError,
    InexactDeletionError,
    InexactDeletionWarning,
    SampleError,
    StateMismatchError,
)
from .state import Halves, Progress, State
from .store.ledger import Removal
from .validation import check_choice, check_ids, encode_labels

_COMMITTING = threading.Lock()


class UnlearningMixin(Halves):
    """What a classifier on additive statistics can do besides fit and predict.

    The classifier provides `_state`, `classes_`, `_commit(state, classes)` and `_progress`.
    """

    classes_: np.ndarray
    num_workers: int
    _commit: Callable[[State, np.ndarray], Self]
    _progress: Progress

    def unlearn(
        self, X_forget: Any, y_forget: Any = None, *, sample_ids: Any = None, copies: str = "one"
    ) -> Self:
        """Forget rows: the result is that of statistics which never saw them.

        Exact for the linearised model; at the pretrained anchor that is a fit without the rows, at a
        fine-tuned one the anchor has seen them. Needs only the forgotten rows; atomic: when an error is
        raised, nothing has changed.

        Parameters
        ----------
        X_forget : array-like
            The rows, exactly as they were learned: they are matched by content.

        y_forget : array-like of shape (n,), default=None
            Their labels; by default the ledger's.

        sample_ids : array-like of shape (n,), default=None
            Match only rows that were learned under these ids (None among them: under any); the receipt
            then counts the rows that are left under them.

        copies : {"one", "all"}, default="one"
            For content that was learned several times: each row of the request removes one copy, or
            all.

        Returns
        -------
        self : FastNTKClassifier
            The estimator without the rows.

        Raises
        ------
        NoPrivateStateError
            If this is a published adapter.

        UnknownSampleError
            If rows were never learned, are already forgotten, or were learned with another label;
            `indices` names them.

        AmbiguousSampleError
            If a row was learned with several labels, weights or ids and the request does not say
            which.

        ForgetsEverythingError
            If no row would be left.

        Warns
        -----
        NumericalDriftWarning
            If versions, threads or the machine changed since fit, and Jacobians with them.
        """
        return self._forget(X_forget, y_forget, sample_ids, copies)

    def can_unlearn(
        self, X_forget: Any, y_forget: Any = None, *, sample_ids: Any = None, copies: str = "one"
    ) -> dict[str, Any]:
        """Try a deletion without doing it.

        Parameters
        ----------
        X_forget, y_forget, sample_ids, copies
            As in :meth:`unlearn`.

        Returns
        -------
        report : dict
            "possible" (bool), "reason" (str, empty if possible), "indices" (rows of the request that
            are in the way), "n_rows" (learned copies that would go), "n_bytes" (estimated peak
            memory), "seconds" (estimated from the last pass and solve).
        """
        check_is_fitted(self)
        removals: list[Removal] = []
        report: dict[str, Any] = {"possible": True, "reason": "", "indices": []}
        try:
            state = self._state
            _, removals = self._match(X_forget, y_forget, sample_ids, copies)
            state.check_rest(removals)
        except FastNTKError as error:
            indices = error.indices if isinstance(error, SampleError) else []
            report = {"possible": False, "reason": str(error), "indices": indices}
        if self._private is None:
            return report | {"n_rows": 0, "n_bytes": 0, "seconds": 0.0}
        model = state.model
        padded = math.ceil(len(removals) / model.settings.batch_size) * model.settings.batch_size
        report["n_rows"] = len(removals)
        report["n_bytes"] = model.memory_needed()
        report["seconds"] = padded * state.seconds_per_row + state.seconds_per_solve
        return report

    def rebuild(self, X: Any, y: Any = None) -> Self:
        """Make the statistics anew, after numerical drift or on another machine.

        Parameters
        ----------
        X : array-like
            Exactly the rows that are still learned, each as often as it was learned, in any order.

        y : array-like of shape (n,), default=None
            Their labels; by default the ledger's.

        Returns
        -------
        self : FastNTKClassifier
            The estimator with fresh statistics; ledger and receipts are kept.

        Raises
        ------
        UnknownSampleError
            If a row is not among the learned ones.

        StateMismatchError
            If rows are missing.
        """
        check_is_fitted(self)
        before = self._state
        rows, removals = self._match(X, y, None, "one")
        return self._replace(before, before.rebuild(rows, removals, self._progress))

    def merge(self, others: UnlearningMixin | Iterable[UnlearningMixin]) -> Self:
        """Add what other estimators have learned apart: sums, ledgers and receipts, never pictures.

        Parameters
        ----------
        others : FastNTKClassifier or iterable of them
            Fitted with the same parameters, the same integer `random_state` and the same classes;
            they are not changed.

        Returns
        -------
        self : FastNTKClassifier
            The estimator of one fit on all rows (of one anchor). Each part keeps its ledger and key.

        Raises
        ------
        StateMismatchError
            If the set-ups differ; the message says in what.

        Warns
        -----
        PrivacyWarning
            If a part has so few rows that its statistics can be inverted.
        """
        check_is_fitted(self)
        parts = [others] if isinstance(others, UnlearningMixin) else list(others)
        for part in parts:
            check_is_fitted(part)
            if not np.array_equal(part.classes_, self.classes_):
                raise StateMismatchError(
                    f"Expected classes {self.classes_.tolist()}, got {part.classes_.tolist()}. Fit "
                    "every part with partial_fit(X, y, classes=...)."
                )
            named = [site for site in (self, part) if hasattr(site, "feature_names_in_")]
            columns = [site.feature_names_in_.tolist() for site in named]
            if len(columns) == 2 and columns[0] != columns[1]:
                raise StateMismatchError(
                    f"Expected columns {columns[0]}, got {columns[1]}. Put the columns "
                    "of the other part in this order and fit it again."
                )
        before = self._state
        return self._replace(before, before.merge([p._state for p in parts]))

    @property
    def _vectors(self) -> bool:
        return self._adapter.model.backbone.spec.size is None

    def _rows(self, X: Any) -> Rows:
        check_is_fitted(self)
        if self._vectors:
            X = validate_data(self, X, dtype=np.float32, reset=False)
        return Rows(X, self._adapter.model.backbone.spec, self.num_workers)

    def _replace(self, before: State, after: State, classes: np.ndarray | None = None) -> Self:
        """Commit what was made of a state, unless another thread has committed in the meantime."""
        with _COMMITTING:
            if self._private is not before:
                raise StateMismatchError(
                    "Another thread changed this estimator during the call, which has changed nothing. "
                    "Call again, and hold a lock around calls that change an estimator."
                )
            return self._commit(after, self.classes_ if classes is None else classes)

    def _match(self, X, y, sample_ids, copies) -> tuple[Rows, list[Removal]]:
        check_choice("copies", copies)
        ledger, rows = self._state.ledger, self._rows(X)
        labels = None
        if y is not None:
            y = column_or_1d(y)
            check_consistent_length(rows, y)
            labels = encode_labels(y, self.classes_).tolist()
        ids = check_ids(sample_ids, len(rows))
        contents = (content(row) for row in rows)
        return rows, ledger.find(contents, labels, ids, copies)

    def _forget(self, X, y=None, sample_ids=None, copies="one", *, seen_by=(), searched_by=()) -> Self:
        check_is_fitted(self)
        before = self._state
        rows, removals = self._match(X, y, sample_ids, copies)
        state = before.forget(
            rows,
            removals,
            self._progress,
            sample_ids=check_ids(sample_ids, len(rows)),
            seen_by=seen_by,
            searched_by=searched_by,
        )
        emptied = self.classes_[(state.class_rows == 0) & (before.class_rows > 0)]
        if len(emptied):
            warnings.warn(
                f"No rows are left of the classes {emptied.tolist()}. They are never predicted any "
                "more; their names are still in classes_ and are published with it.",
                EmptyClassWarning,
                stacklevel=3,
            )
        return self._replace(before, state)


def unlearn(
    estimator: BaseEstimator,
    X_forget: Any,
    y_forget: Any = None,
    *,
    sample_ids: Any = None,
    copies: str = "one",
    strict: bool = False,
) -> BaseEstimator:
    """Forget rows in the classifier inside a fitted Pipeline or search.

    Parameters
    ----------
    estimator : estimator
        A fitted `FastNTKClassifier`, a `Pipeline` that ends in one, or a search such as
        `GridSearchCV` (refitted) over either. Changed in place.

    X_forget : array-like
        Rows as they were passed to the fit of `estimator`.

    y_forget, sample_ids, copies
        As in :meth:`FastNTKClassifier.unlearn`.

    strict : bool, default=False
        Raise instead of warning where fitted steps before the classifier have seen the rows, and
        where a fine-tuned anchor has. What else can make a deletion approximate (numerical drift)
        warns, and stands in the receipt.

    Returns
    -------
    estimator : estimator
        The same object.

    Raises
    ------
    TypeError
        If there is no `FastNTKClassifier` inside.

    InexactDeletionError
        With `strict`, if fitted steps or a fine-tuned anchor have seen the rows. Nothing was changed.

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
    while not hasattr(inner, "_forget"):
        if isinstance(inner, Pipeline):
            check_is_fitted(inner)
            for name, step in inner.steps[:-1]:
                if step is None or step == "passthrough":
                    continue
                X = step.transform(X)
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
    check_is_fitted(inner)
    if strict and inner._state.settings.anchor == "finetuned":
        raise InexactDeletionError(
            "The fine-tuned anchor has seen the forgotten rows: the deletion is exact for the model "
            'linearised there, and approximate against a retraining. Fit with anchor="pretrained", or '
            "without strict. Nothing was changed."
        )
    if seen_by:
        message = (
            f"The fitted steps {', '.join(seen_by)} have seen the forgotten rows and still remember "
            "them: the deletion is approximate. Fit them on other data, or use steps that learn "
            "nothing."
        )
        if strict:
            raise InexactDeletionError(message + " Nothing was changed.")
        warnings.warn(message, InexactDeletionWarning, stacklevel=2)
    inner._forget(X, y_forget, sample_ids, copies, seen_by=seen_by, searched_by=searched_by)
    return estimator
