"""Checks that metrics, attacks and reports share, and what they raise."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.validation import _num_samples

from ..baselines.modules import as_classifier


class MissingOracleError(ValueError):
    """A metric that compares with a retrained oracle did not get one."""


class NoNoiseFloorWarning(UserWarning):
    """A report has no second oracle, so nothing says how large a difference by chance is."""


class Classifier(Protocol):
    """What metrics and reports ask of a model: its classes and two methods.

    Fitted classifiers of scikit-learn have them, and metrics give them to a plain torch module.

    Examples
    --------
    >>> import numpy as np
    >>> from fastntk_sk.evaluation import population_mia_auc
    >>> class Guess:
    ...     classes_ = np.array(["cat", "dog"])
    ...     def predict_proba(self, X):
    ...         return np.full((len(X), 2), 0.5)
    ...     def predict(self, X):
    ...         return self.classes_[self.predict_proba(X).argmax(axis=1)]
    >>> population_mia_auc(Guess(), ([[0.0]], ["cat"]), ([[1.0]], ["dog"]))
    0.5
    """

    @property
    def classes_(self) -> np.ndarray:
        """Labels of shape (n_classes,), in the order of the columns of `predict_proba`."""

    def predict(self, X: Any) -> np.ndarray:
        """Return labels of shape (n,)."""

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of shape (n, n_classes)."""


def check_fitted(model: Any, X: Any = None) -> Any:
    """Return a model as a classifier, a module by the rows X that it takes.

    Raise NotFittedError without `classes_`; unlike scikit-learn's check, for baselines too.
    """
    classifier = model if X is None else as_classifier(model, X)
    if not hasattr(classifier, "classes_"):
        raise NotFittedError(f"Expected a fitted classifier, got an unfitted {type(model).__name__}.")
    return classifier


def require_oracle(oracle: Any) -> None:
    """Raise MissingOracleError for None."""
    if oracle is None:
        raise MissingOracleError(
            "Expected a retrained oracle, got None. What unlearning should have given is only known "
            "from a model that never saw the forgotten rows: retrain one, for example with "
            "fastntk_sk.baselines.retrain."
        )


def check_oracle(unlearned: Any, oracle: Any, X: Any = None) -> tuple[Any, Any]:
    """Return both by `check_fitted`; raise unless they are distinct models of the same classes."""
    require_oracle(oracle)
    fitted = check_fitted(unlearned, X), check_fitted(oracle, X)
    if unlearned is oracle:
        raise ValueError(
            "Expected an oracle that was retrained separately, got the very same object as the model."
        )
    check_same_classes(*fitted)
    return fitted


def check_same_classes(one: Any, other: Any) -> None:
    """Raise ValueError unless two models have the same classes."""
    if not np.array_equal(one.classes_, other.classes_):
        raise ValueError(
            f"Expected two models of the same classes, got {one.classes_.tolist()} and "
            f"{other.classes_.tolist()}. Name all classes when one is retrained: fit(X, y, classes=...)."
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
