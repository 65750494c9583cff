"""Checks that metrics, attacks and reports share, and what they raise."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils import column_or_1d
from sklearn.utils.validation import _num_samples

from ..validation import encode_labels

_FEWEST_MODELS = 4


class MissingOracleError(ValueError):
    """A metric that compares with a retrained oracle did not get one."""


class NoNoiseFloorWarning(UserWarning):
    """A report has no second oracle, so nothing says how large a difference by chance is."""


def check_fitted(estimator: Any) -> None:
    """Raise NotFittedError unless an estimator, of this library or not, has classes."""
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
    """Check that two models can be compared.

    Parameters
    ----------
    unlearned : estimator

    oracle : estimator or None

    Raises
    ------
    MissingOracleError
        If there is no oracle.

    NotFittedError
        If one of them is not fitted.

    ValueError
        If they are one object, or differ in `classes_`.
    """
    require_oracle(oracle)
    for estimator in (unlearned, oracle):
        check_fitted(estimator)
    if unlearned is oracle:
        raise ValueError(
            "Expected an oracle that was retrained apart, got the very same object as the model. "
            "Every gap to itself is zero."
        )
    if not np.array_equal(unlearned.classes_, oracle.classes_):
        raise ValueError(
            f"Expected an oracle of the classes {unlearned.classes_.tolist()}, got "
            f"{oracle.classes_.tolist()}. Name all classes when it is retrained, for example "
            "partial_fit(X, y, classes=...)."
        )


def check_rows(X: Any, name: str = "X") -> None:
    """Raise ValueError for a set without rows."""
    if not _num_samples(X):
        raise ValueError(f"Expected at least one row in {name}, got none.")


def check_dataset(dataset: Any, name: str) -> tuple[Any, np.ndarray]:
    """Return X and y of a dataset.

    Parameters
    ----------
    dataset : pair of array-likes
        (X, y).

    name : str

    Returns
    -------
    X : array-like

    y : ndarray of shape (n,)

    Raises
    ------
    ValueError
        If it is no pair, if it is empty, or if the lengths differ.
    """
    if not isinstance(dataset, (tuple, list)) or len(dataset) != 2:
        raise ValueError(f"Expected {name} to be a pair (X, y), got {type(dataset).__name__}.")
    X, y = dataset
    check_rows(X, name)
    y = column_or_1d(y)
    if _num_samples(X) != len(y):
        raise ValueError(f"Expected one label a row in {name}, got {_num_samples(X)} and {len(y)}.")
    return X, y


def check_sets(retain: Any, forget: Any, test: Any) -> dict[str, tuple[Any, np.ndarray]]:
    """Return the three datasets of a deletion by name, each as `check_dataset` returns it."""
    sets = {"retain": retain, "forget": forget, "test": test}
    return {name: check_dataset(dataset, name) for name, dataset in sets.items()}


def class_indices(y: Any, classes: np.ndarray) -> np.ndarray:
    """Return the index of each label among the classes.

    Parameters
    ----------
    y : array-like of shape (n,)

    classes : ndarray of shape (n_classes,)

    Returns
    -------
    labels : int64 ndarray of shape (n,)

    Raises
    ------
    ValueError
        If a label is not among the classes; the message names it.
    """
    y = column_or_1d(y)
    labels = encode_labels(y, classes)
    if (labels < 0).any():
        raise ValueError(
            f"Expected labels among the model's classes {classes.tolist()}, got "
            f"{np.unique(y[labels < 0]).tolist()}."
        )
    return labels


def check_margins(unlearned: Any, oracle: Any) -> list[np.ndarray]:
    """Return margins of two kinds of models as float64.

    Parameters
    ----------
    unlearned, oracle : array-like of shape (n_models, n_examples)
        NaN where a model does not count for an example.

    Returns
    -------
    parts : list of two ndarrays

    Raises
    ------
    MissingOracleError
        If there are no oracles.

    ValueError
        If shapes do not fit, margins are infinite, or examples have fewer than four models of a kind.
    """
    require_oracle(oracle)
    parts = [np.asarray(part, dtype=np.float64) for part in (unlearned, oracle)]
    shapes = [part.shape for part in parts]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][1:] != shapes[1][1:] or not shapes[0][1]:
        raise ValueError(
            "Expected margins of shapes (n_models, n_examples) and (m_models, n_examples), got "
            f"{shapes[0]} and {shapes[1]}."
        )
    for name, part in zip(("unlearned", "oracle"), parts, strict=True):
        if np.isinf(part).any():
            raise ValueError(f"Expected finite margins or NaN, got infinite ones of {name} models.")
        few = np.flatnonzero((~np.isnan(part)).sum(axis=0) < _FEWEST_MODELS)
        if len(few):
            raise ValueError(
                f"Expected at least {_FEWEST_MODELS} {name} models for each example, got fewer for the "
                f"examples {few[:10].tolist()}{' and others' if len(few) > 10 else ''}. Train more "
                "models, or leave these examples out."
            )
    return parts


def optional(module: str) -> Any:
    """Import an optional dependency, or say how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs {module.split('.')[0]}. Install it with: pip install fastntk_sk[evaluation]"
        ) from error
