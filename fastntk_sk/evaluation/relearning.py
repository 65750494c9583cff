"""How fast an unlearned model learns the forgotten rows again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from ..baselines.network import Training, cross_entropy
from ..modes import without_modes


@without_modes
def relearn_curve(
    estimator: Any,
    X: Any,
    y: Any,
    forget: Any,
    *,
    n_steps: int = 100,
    learning_rate: float = 5e-4,
    batch_size: int = 50,
    random_state: Any = 0,
    until: float = -math.inf,
    every: int = 1,
) -> np.ndarray:
    """Train on all rows again, and follow the loss on the forgotten ones.

    AdamW trains the subset and the readout of the estimator's network, or a module; the batches are the
    same for every model with the same `random_state`. Compare with the oracle and with a fresh model
    (`baselines.untrained`).

    Parameters
    ----------
    estimator : FastNTKClassifier, BaselineClassifier, ModuleClassifier or Module
        Fitted; not changed.

    X, y : array-like
        The training set with the forget set in it.

    forget : pair (X, y)

    n_steps, learning_rate, batch_size
        Of AdamW.

    random_state : int, default=0
        Order of the rows.

    until : float, default=-inf
        Loss at which to stop early, for example the original's where only `relearn_time` is needed.

    every : int, default=1
        Number of steps between two evaluations of the loss.

    Returns
    -------
    losses : ndarray of shape (n_steps // every + 1,), or shorter where `until` was reached
        Mean cross entropy of the forget set, from before the first step on.

    Raises
    ------
    ValueError
        If `y` holds a label that the estimator does not know.

    References
    ----------
    Golatkar et al., "Eternal Sunshine of the Spotless Net", arXiv:1911.04933.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.evaluation import relearn_curve
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X[30:], y[30:])
    >>> losses = relearn_curve(clf, X, y, (X[:30], y[:30]), n_steps=30, learning_rate=0.01)
    >>> bool(losses[-1] < losses[0])
    True
    """
    training = Training(estimator, X, learning_rate, random_state)
    X_forget, y_forget = forget
    held = list(training.original.batches(X_forget, y_forget, batch_size))

    @torch.no_grad()
    def forget_loss() -> float:
        losses = [
            nn.functional.cross_entropy(training.network(batch), labels, reduction="sum")
            for batch, labels, _ in held
        ]
        return float(sum(losses)) / len(y_forget)

    curve = [forget_loss()]
    steps = training.steps(X, y, cross_entropy, epochs=n_steps, batch_size=batch_size)
    for step in range(1, n_steps + 1):
        if curve[-1] <= until:
            break
        next(steps)
        if step % every == 0:
            curve.append(forget_loss())
    return np.array(curve)


def relearn_time(losses: Any, original_loss: float, every: int = 1) -> float:
    """Return the first step at which the forget loss is back at the original's.

    The ideal value is the oracle's. Far fewer steps mean that the rows were hidden, far more that the
    model was damaged on them.

    Parameters
    ----------
    losses, every
        What `relearn_curve` returned and was passed.

    original_loss : float
        Loss on the forget set under the model before the deletion.

    Returns
    -------
    steps : float
        Infinite if no loss is that low.

    Examples
    --------
    >>> from fastntk_sk.evaluation import relearn_time
    >>> relearn_time([2.0, 1.0, 0.4, 0.5], original_loss=0.4)
    2.0
    """
    reached = np.flatnonzero(np.asarray(losses) <= original_loss)
    return float(every * reached[0]) if len(reached) else math.inf
