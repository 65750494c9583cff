"""Checks of parameters and training data, in scikit-learn's words."""

from __future__ import annotations

import math
import secrets
import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, check_scalar, column_or_1d
from sklearn.utils._missing import is_pandas_na, is_scalar_nan
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, validate_data
from torch.utils.data import Subset

from .backbones.inputs import MAX_SIDE, check_images

_CHOICES = {
    "anchor": ("pretrained", "finetuned"),
    "kernel": ("full", "pseudo"),
    "predict_with": ("auto", "linear", "network"),
    "precision": ("auto", "float32", "float64", "bfloat16"),
    "copies": ("one", "all"),
}

_LIGHTEST_MEAN = 0.2  # below it alpha="auto" is far too large
_HEAVIEST = 1e9  # weight over ridge of a row, of which 1e-7 is left in scores when it is forgotten


def draw_seed(random_state: Any) -> int:
    """Return the seed of a scikit-learn random_state; None is fresh, and leaves global ones alone."""
    if random_state is None:
        return secrets.randbits(31)
    return int(check_random_state(random_state).randint(2**31 - 1))


def check_choice(name: str, value: Any) -> None:
    """Raise ValueError, listing the choices, unless a value is one of them."""
    if value not in _CHOICES[name]:
        raise ValueError(f"Expected {name} to be one of {_CHOICES[name]}, got {value!r}.")


def check_parameters(estimator: BaseEstimator) -> None:
    """Check the parameters of a classifier.

    Parameters
    ----------
    estimator : FastNTKClassifier

    Raises
    ------
    ValueError, TypeError
        In scikit-learn's words.
    """
    get = estimator.get_params(deep=False).__getitem__
    for name in ("anchor", "kernel", "predict_with", "precision"):
        check_choice(name, get(name))
    for name in ("alpha", "tangent_scale", "target_scale", "learning_rate"):
        value = get(name)
        if isinstance(value, Real) and not math.isfinite(value):
            raise ValueError(f"Expected {name} to be finite, got {value}.")
    if isinstance(get("alpha"), str) and get("alpha") != "auto":
        raise ValueError(f'Expected alpha to be a positive number or "auto", got {get("alpha")!r}.')
    if get("alpha") != "auto":
        check_scalar(get("alpha"), "alpha", Real, min_val=0, include_boundaries="neither")
    check_scalar(get("tangent_scale"), "tangent_scale", Real, min_val=0)
    if get("target_scale") != "auto":
        check_scalar(get("target_scale"), "target_scale", Real, min_val=0, include_boundaries="neither")
    check_scalar(get("learning_rate"), "learning_rate", Real, min_val=0, include_boundaries="neither")
    if not isinstance(get("finetune_params"), (dict, type(None))):
        raise TypeError(
            "Expected finetune_params to be a dict of arguments of skorch.NeuralNetClassifier, got "
            f"{type(get('finetune_params')).__name__}."
        )
    if get("anchor") == "finetuned" and not get("tangent_scale"):
        raise ValueError(
            'Expected tangent_scale > 0 with anchor="finetuned", got 0: the subset would stay where SGD '
            "left it, forgotten rows and all."
        )
    if get("kernel") == "pseudo":
        for name, other in (("anchor", "finetuned"), ("predict_with", "network")):
            if get(name) == other:
                raise ValueError(
                    f'Expected kernel="full" with {name}={other!r}, got "pseudo", in which every class '
                    "reads the tangents by itself: it cannot be written back as weights of a network."
                )
    for name in ("batch_size", "n_prompts", "n_directions", "max_epochs"):
        check_scalar(get(name), name, Integral, min_val=1)
    check_scalar(get("num_workers"), "num_workers", Integral, min_val=0)
    if get("n_components") not in ("auto", None):
        check_scalar(get("n_components"), "n_components", Integral, min_val=1)
    if get("image_size") is not None:
        for side in np.atleast_1d(get("image_size")).tolist():
            check_scalar(side, "image_size", Integral, min_val=1, max_val=MAX_SIDE)


def check_training_rows(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    sample_weight: Any,
    sample_ids: Any,
    *,
    alpha: float,
    vectors: bool,
    reset: bool,
) -> tuple[Any, np.ndarray, np.ndarray, list[object] | None]:
    """Check training data and drop rows of weight zero.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Gets `n_features_in_` and `feature_names_in_` if `reset` and `vectors`.

    X, y, sample_weight, sample_ids
        As in :meth:`FastNTKClassifier.fit`.

    alpha : float
        The ridge, beside which a weight is small or large.

    vectors : bool
        Whether X must be 2-D.

    reset : bool

    Returns
    -------
    X : float32 ndarray of shape (n, n_features), image array or list

    y : ndarray of shape (n,)

    weights : float64 ndarray of shape (n,)

    ids : list or None

    Warns
    -----
    UserWarning
        If the mean weight is below 0.2 with alpha="auto".
    """
    if vectors:
        X, y = validate_data(estimator, X, y, dtype=np.float32, reset=reset)
    else:
        if y is None:
            raise ValueError("Expected class labels, got None: fit requires y to be passed.")
        X = check_images(X)
        y = column_or_1d(y, warn=True)
    check_consistent_length(X, y)
    check_classification_targets(y)
    y = np.asarray(y)
    weights = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
    ids = check_ids(sample_ids, len(y))
    keep = np.flatnonzero(weights)
    if not len(keep):
        raise ValueError("Expected at least one positive sample_weight, got only zeros.")
    if sample_weight is not None and weights.max() > _HEAVIEST * alpha:
        ridge = "the smallest of the automatic alphas" if estimator.alpha == "auto" else "alpha"
        raise ValueError(
            f"Expected sample weights of at most {_HEAVIEST * alpha:g} ({_HEAVIEST:g} times {ridge}), "
            f"got {weights.max():g}: rounding would leave traces of so heavy a row when it is "
            "forgotten. Divide all weights by the same number, or raise alpha."
        )
    mean = weights[keep].mean()
    if reset and estimator.alpha == "auto" and mean < _LIGHTEST_MEAN:
        warnings.warn(
            'alpha="auto" is made for sample weights with a mean near one, and these have a mean of '
            f"{mean:.2g}: the ridge will be far too large. Scale the weights, or choose "
            "alpha.",
            UserWarning,
            stacklevel=6,
        )
    if len(keep) < len(y):
        if isinstance(X, np.ndarray) and not isinstance(X, np.memmap):
            X = X[keep]
        else:
            X = Subset(X, keep.tolist())
        y, weights = y[keep], weights[keep]
        ids = None if ids is None else [ids[i] for i in keep]
    return X, y, weights, ids


def check_ids(sample_ids: Any, n: int) -> list[object] | None:
    """Return sample ids as a list of length n, or None; a missing one is None."""
    if sample_ids is None:
        return None
    ids = column_or_1d(np.asarray(sample_ids, dtype=object)).tolist()
    if len(ids) != n:
        raise ValueError(f"Expected one sample id a row ({n}), got {len(ids)}.")
    return [None if is_scalar_nan(each) or is_pandas_na(each) else each for each in ids]


def encode_labels(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return class indices, and -1 for a label that is not among the classes."""
    index = {label: i for i, label in enumerate(classes.tolist())}
    return np.array([index.get(label, -1) for label in y.tolist()], dtype=np.int64)
