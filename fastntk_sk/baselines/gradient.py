"""Baselines of the Fast-NTK paper that take gradient steps, and retraining itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from ..modes import without_modes
from ..validation import class_indices
from .network import Training, check_is_ours, check_origin, cross_entropy


@without_modes
def retrain(
    estimator: Any,
    X_retain: Any,
    y_retain: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    random_state: Any = None,
) -> Any:
    """Fit a clone on the retain set alone: the oracle with which every method is compared.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Fitted; only its parameters and class names are used.

    X_retain, y_retain, X_forget, y_forget : array-like
        The rows that stay, and those to forget, which are not used.

    random_state : int, default=None
        Replaces the estimator's own; None keeps it.

    Returns
    -------
    oracle : FastNTKClassifier

    Raises
    ------
    ValueError
        For a module as anchor: a clone would start from what has seen the rows.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import retrain
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y)
    >>> retrain(clf, X[10:], y[10:], X[:10], y[:10]).n_samples_learned_
    140
    """
    check_is_ours(estimator)
    check_origin(estimator._adapter.settings)
    oracle = clone(estimator)
    if random_state is not None:
        oracle.set_params(random_state=random_state)
    return oracle.fit(X_retain, y_retain, classes=estimator.classes_)


@without_modes
def finetune(
    estimator: Any,
    X_retain: Any,
    y_retain: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    random_state: Any = None,
    epochs: int = 5,
    learning_rate: float = 2e-3,
    batch_size: int = 50,
) -> Any:
    """Continue training on the retain set, so that the rest may fade.

    Parameters
    ----------
    estimator : FastNTKClassifier, BaselineClassifier, ModuleClassifier or Module
        Fitted; not changed. Its subset and readout are trained; of a module all weights that require
        gradients, in eval mode.

    X_retain, y_retain, X_forget, y_forget : array-like
        The rows that stay, and those to forget, which are not used here. A class that the retain set
        lacks is never predicted, except by a module.

    random_state : int or None, default=None
        Order of the rows.

    epochs, batch_size : int

    learning_rate : float
        Of AdamW, without weight decay.

    Returns
    -------
    unlearned : BaselineClassifier or ModuleClassifier
        The latter of a module.

    References
    ----------
    Li et al., arXiv:2312.14923.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import finetune
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y)
    >>> finetune(clf, X[10:], y[10:], X[:10], y[:10], random_state=0).classes_.tolist()
    [0, 1, 2]
    """
    training = Training(estimator, X_retain, learning_rate, random_state)
    training.run(X_retain, y_retain, cross_entropy, epochs=epochs, batch_size=batch_size)
    return training.result(y_retain)


@without_modes
def max_loss(
    estimator: Any,
    X_retain: Any,
    y_retain: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    random_state: Any = None,
    epochs: int = 3,
    learning_rate: float = 5e-4,
    batch_size: int = 50,
) -> Any:
    """Increase the cross entropy of the forget set by gradient ascent (arXiv:2312.14923).

    Parameters
    ----------
    estimator, X_retain, y_retain, X_forget, y_forget, random_state, epochs, learning_rate, batch_size
        As in :func:`finetune`. The retain set only says which classes can be predicted; it may be
        empty or None.

    Returns
    -------
    unlearned : BaselineClassifier or ModuleClassifier

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import max_loss
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y)
    >>> worse = max_loss(clf, X[10:], y[10:], X[:10], y[:10], random_state=0, learning_rate=0.1)
    >>> bool(worse.score(X[:10], y[:10]) < clf.score(X[:10], y[:10]))
    True
    """
    training = Training(estimator, X_forget, learning_rate, random_state)

    def ascent(x: Tensor, scores: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        return -cross_entropy(x, scores, labels, rows)

    training.run(X_forget, y_forget, ascent, epochs=epochs, batch_size=batch_size)
    return training.result(y_retain)


@without_modes
def random_label(
    estimator: Any,
    X_retain: Any,
    y_retain: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    random_state: Any = None,
    epochs: int = 3,
    learning_rate: float = 5e-4,
    batch_size: int = 50,
) -> Any:
    """Train on the forget set under wrong labels, drawn at random (arXiv:2312.14923).

    Parameters
    ----------
    estimator, X_retain, y_retain, X_forget, y_forget, random_state, epochs, learning_rate, batch_size
        As in :func:`finetune`. The retain set only says which classes can be predicted; it may be
        empty or None.

    Returns
    -------
    unlearned : BaselineClassifier or ModuleClassifier

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import random_label
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y)
    >>> worse = random_label(clf, X[10:], y[10:], X[:10], y[:10], random_state=0, learning_rate=0.1)
    >>> bool(worse.score(X[:10], y[:10]) < clf.score(X[:10], y[:10]))
    True
    """
    training = Training(estimator, X_forget, learning_rate, random_state)
    wrong = wrong_labels(training.original, y_forget, training.draws)
    training.run(X_forget, wrong, cross_entropy, epochs=epochs, batch_size=batch_size)
    return training.result(y_retain)


def wrong_labels(original: Any, y: Any, draws: torch.Generator) -> np.ndarray:
    """Draw for each row another of the classes than its own."""
    index, n_classes = class_indices(y, original.classes), len(original.classes)
    shift = torch.randint(1, n_classes, (len(index),), generator=draws).numpy()
    return original.classes[(index + shift) % n_classes]
