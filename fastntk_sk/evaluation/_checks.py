"""Checks that metrics, attacks and reports share, and what they raise."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.validation import _num_samples

from ..validation import encode_labels


class MissingOracleError(ValueError):
    """A metric that compares with a retrained oracle did not get one."""


class NoNoiseFloorWarning(UserWarning):
    """A report has no second oracle, so nothing says how large a difference by chance is."""


def check_fitted(estimator: Any) -> None:
    """Raise NotFittedError for an estimator, from this library or not, without `classes_`."""
    if not hasattr(estimator, "classes_"):
        raise NotFittedError(
            f"Expected a fitted classifier, got this {type(estimator).__name__} without classes_. "
            "Call fit first."
        )


def require_oracle(oracle: Any) -> None:
    """Raise MissingOracleError for None."""
    if oracle is None:
        raise MissingOracleError(
            "Expected a retrained oracle, got None. What unlearning should have given is only known "
            "from a model that never saw the forgotten rows: retrain one, for example with "
            "fastntk_sk.baselines.retrain, or clone(estimator).fit(X_retain, y_retain)."
        )


def check_oracle(unlearned: Any, oracle: Any) -> None:
    """Raise unless the two are fitted, distinct models of the same classes."""
    require_oracle(oracle)
    for estimator in (unlearned, oracle):
        check_fitted(estimator)
    if unlearned is oracle:
        raise ValueError(
            "Expected an oracle that was retrained separately, got the very same object as the model. "
            "Every gap to itself is zero."
        )
    if not np.array_equal(unlearned.classes_, oracle.classes_):
        raise ValueError(
            f"Expected an oracle with the classes {unlearned.classes_.tolist()}, got "
            f"{oracle.classes_.tolist()}. Name all classes when it is retrained, for example "
            "partial_fit(X, y, classes=...)."
        )


def check_rows(X: Any, name: str = "X") -> None:
    """Raise ValueError for a set without rows."""
    if not _num_samples(X):
        raise ValueError(f"Expected at least one row in {name}, got none.")


def check_dataset(dataset: Any, name: str) -> tuple[Any, np.ndarray]:
    """Return X and y, of shape (n,), of a non-empty pair (X, y)."""
    if not isinstance(dataset, (tuple, list)) or len(dataset) != 2:
        raise ValueError(f"Expected {name} to be a pair (X, y), got {type(dataset).__name__}.")
    X, y = dataset
    check_rows(X, name)
    check_consistent_length(X, y)
    return X, column_or_1d(y)


def check_sets(retain: Any, forget: Any, test: Any) -> dict[str, tuple[Any, np.ndarray]]:
    """Return the three checked datasets of a deletion by name."""
    sets = {"retain": retain, "forget": forget, "test": test}
    return {name: check_dataset(dataset, name) for name, dataset in sets.items()}


def class_indices(y: Any, classes: np.ndarray) -> np.ndarray:
    """Return the index of each label among the classes; raise ValueError for other labels."""
    y = column_or_1d(y)
    labels = encode_labels(y, classes)
    if (labels < 0).any():
        raise ValueError(
            f"Expected labels among the model's classes {classes.tolist()}, got "
            f"{np.unique(y[labels < 0]).tolist()}."
        )
    return labels


def optional(module: str) -> Any:
    """Import an optional dependency, or say how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs {module.split('.')[0]}. Install it with: pip install fastntk_sk[evaluation]"
        ) from error
