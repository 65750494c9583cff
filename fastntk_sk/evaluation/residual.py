"""Whether a model still recognises forgotten rows that were moved a little."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.utils import check_scalar
from torch import Tensor

from ..exceptions import warn
from ..validation import class_indices, draw_seed
from ._checks import Classifier, check_dataset, check_oracle


def residual_knowledge(
    unlearned: Any,
    oracle: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    radius: float,
    n_draws: int = 20,
    random_state: Any = 0,
) -> dict[str, float]:
    r"""Return how often two models recognise forgotten rows near which a retrained model should not.

    .. math::

        K_m = \frac{1}{|F|} \sum_{i \in F} P( m(x_i + \xi) = y_i ), \quad
        F = \{ i : r(x_i) \ne y_i \}, \quad \xi \sim U[-\tau, \tau]^d ,

    for m the unlearned model u and the oracle r: of the forgotten rows that the oracle gets wrong, the
    share that is right after a small random perturbation. The ideal :math:`K_u` is the oracle's,
    :math:`K_r`, which is not zero. More means that the rows are still known nearby, less that they are
    pushed away. Both models see the same draws, from which the probability is estimated.

    Parameters
    ----------
    unlearned, oracle : classifier or Module
        As in :func:`accuracy_gaps`.

    X_forget : array, Tensor or DataFrame of shape (n, ...)
        Floats, or uint8 pictures, which stay uint8. Pictures of floats in [0, 1] stay there.

    y_forget : array-like of shape (n,)
        The labels with which the rows were learned.

    radius : float
        The largest change of a value, :math:`\tau`: in units of X, for uint8 pictures as a share of 255
        and at least 1/255. The paper's is about 0.03 for pictures in [0, 1].

    n_draws : int, default=20
        Perturbations of each row; each is one pass of both models over the rows in F.

    random_state : int, RandomState instance or None, default=0
        Seeds the perturbations.

    Returns
    -------
    shares : dict of str to float
        "unlearned" and "oracle", each in [0, 1]. Their ratio is the paper's residual knowledge, over
        the rows in F.

    Raises
    ------
    MissingOracleError, NotFittedError, ValueError
        As in :func:`accuracy_gaps`; also for rows that cannot be perturbed, such as paths.

    Warns
    -----
    UndefinedMetricWarning
        If the oracle gets every row right. Both shares are NaN then.

    References
    ----------
    Hsu et al., "The Unseen Threat: Residual Knowledge in Machine Unlearning under Perturbed Samples",
    arXiv:2601.22359.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from fastntk_sk.evaluation import residual_knowledge
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> u, r = (DecisionTreeClassifier().fit(X, y) for y in ([0, 1, 1, 1], [0, 0, 1, 1]))
    >>> residual_knowledge(u, r, X[1:2], [1], radius=0.1)
    {'unlearned': 1.0, 'oracle': 0.0}
    """
    X, y = check_dataset((X_forget, y_forget), "X_forget")
    unlearned, oracle = check_oracle(unlearned, oracle, X)
    class_indices(y, oracle.classes_)
    models = {"unlearned": unlearned, "oracle": oracle}
    return residual_shares(models, X, y, radius=radius, n_draws=n_draws, random_state=random_state)


def residual_shares(
    models: dict[str, Classifier],
    X: Any,
    y: np.ndarray,
    *,
    radius: float,
    n_draws: int = 20,
    random_state: Any = 0,
) -> dict[str, float]:
    """Return the shares of several models by name, one of which is the oracle."""
    missed = models["oracle"].predict(X) != y
    if not missed.any():
        warn(
            "The oracle gets every forgotten row right: there is none that another model could know "
            "and it does not, so that residual knowledge is NaN.",
            UndefinedMetricWarning,
        )
        return dict.fromkeys(models, float("nan"))
    right: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for near in _perturbed(X, missed, radius, n_draws, draw_seed(random_state)):
        for name, model in models.items():
            right[name].append(model.predict(near) == y[missed])
    return {name: float(np.mean(found)) for name, found in right.items()}


def _perturbed(X: Any, rows: np.ndarray, radius: float, n_draws: int, seed: int) -> Iterator[Any]:
    """Yield copies of some rows, a mask, with every value moved by up to a radius."""
    check_scalar(radius, "radius", Real, min_val=0, include_boundaries="neither")
    check_scalar(n_draws, "n_draws", Integral, min_val=1)
    values = X.detach().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X)
    pictures = values.dtype == np.uint8
    images = isinstance(X, (list, tuple)) and isinstance(X[0], Image.Image)
    if images or not (pictures or values.dtype.kind == "f"):
        raise ValueError(
            "Expected rows to perturb as an array of floats or of uint8 pictures, got "
            f"{'PIL images' if images else values.dtype}. Read pictures, and convert numbers, first."
        )
    if pictures and radius < 1 / 255:
        raise ValueError(f"Expected a radius of at least 1/255 for uint8 pictures, got {radius}.")
    bounded = values.ndim > 2 and values.min() >= 0 and values.max() <= 1
    chosen, generator = values[rows], np.random.default_rng(seed)
    for _ in range(n_draws):
        noise = generator.uniform(-radius, radius, size=chosen.shape)
        if pictures:
            near = (chosen + 255 * noise).round().clip(0, 255).astype(np.uint8)
        else:
            near = (chosen + noise).astype(chosen.dtype)
            near = near.clip(0, 1) if bounded else near
        if isinstance(X, Tensor):
            yield torch.from_numpy(near)
        else:
            yield type(X)(near, columns=X.columns) if hasattr(X, "iloc") else near
