"""The Gaussian unlearning score: an audit that needs no oracle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_scalar
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class GaussianUnlearningScore:
    """What :func:`gaussian_unlearning_score` found.

    Parameters
    ----------
    scores : float64 ndarray of shape (n,)
        One a poisoned row, N(0, 1) if it is forgotten.

    mean : float
        Their mean; 0 is ideal.

    z : float
        sqrt(n) times the mean, N(0, 1) if all are forgotten. Beyond 2 either way, the model still
        knows the noise; negative, its loss falls toward the poisoned inputs.
    """

    scores: np.ndarray
    mean: float
    z: float


def gaussian_unlearning_score(
    module: nn.Module, X: Any, y: Any, noise: Any, *, sigma: float, batch_size: int = 64
) -> GaussianUnlearningScore:
    r"""Test whether a model still knows the noise that was added to rows it should have forgotten.

    Before training, noise :math:`\xi_i \sim N(0, \sigma^2 I)` is added to the rows that will be
    forgotten. Of the unlearned model, at the clean inputs,

    .. math::

        s_i = \frac{\langle \xi_i, g_i \rangle}{\sigma \| g_i \|}, \quad
        g_i = \nabla_x \, CE(module(x_i), y_i) .

    A model that never saw the noise is independent of it, so that s_i is exactly N(0, 1): 0 is the
    ideal mean, with a standard error of 1/sqrt(n), and no oracle is needed. Values away from zero
    are worse; a score near zero proves nothing for rows that were not poisoned.

    Parameters
    ----------
    module : nn.Module
        Maps a batch of inputs to scores of shape (n, n_classes), for example what `to_module`
        returns. Evaluated in eval mode; its own mode and gradients are left as they were.

    X : array-like or Tensor of shape (n, ...)
        Clean inputs as `module` takes them, without the noise.

    y : array-like or Tensor of shape (n,)
        Class indices that the poisoned rows were learned with.

    noise : array-like or Tensor of shape (n, ...)
        What was added to `X`.

    sigma : float
        Standard deviation of the noise.

    batch_size : int, default=64

    Returns
    -------
    result : GaussianUnlearningScore

    Raises
    ------
    ValueError
        If there is no row, if shapes differ, or if the loss of a row has no gradient.

    References
    ----------
    Pawelczyk et al., "Machine Unlearning Fails to Remove Data Poisoning Attacks", arXiv:2406.17216.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.evaluation import gaussian_unlearning_score
    >>> draws = torch.Generator().manual_seed(0)
    >>> X, noise = torch.randn(2, 400, 5, generator=draws)
    >>> y = torch.zeros(400, dtype=torch.int64)
    >>> result = gaussian_unlearning_score(torch.nn.Linear(5, 3), X, y, noise, sigma=1.0)
    >>> result.scores.shape, abs(result.z) < 4
    ((400,), True)
    """
    check_scalar(sigma, "sigma", Real, min_val=0, include_boundaries="neither")
    check_scalar(batch_size, "batch_size", Integral, min_val=1)
    parameter = next(module.parameters(), torch.zeros(()))
    X, noise = (torch.as_tensor(part).to(parameter) for part in (X, noise))
    labels = torch.as_tensor(y).to(parameter.device, torch.int64)
    if not len(X) or X.shape != noise.shape or labels.shape != X.shape[:1]:
        raise ValueError(
            "Expected rows, noise of the same shape and one label a row, got shapes "
            f"{tuple(X.shape)}, {tuple(noise.shape)} and {tuple(labels.shape)}."
        )
    was_training = module.training
    module.eval()
    try:
        batches = zip(X.split(batch_size), labels.split(batch_size), strict=True)
        gradients = torch.cat([_input_gradients(module, *batch) for batch in batches])
    finally:
        module.train(was_training)
    norms = gradients.norm(dim=1)
    flat = torch.nonzero(norms == 0).flatten().tolist()
    if flat:
        raise ValueError(
            f"Expected a gradient of the loss in each input, got zero in rows {flat[:10]}. Use a "
            "module in float64, or leave these rows out."
        )
    inner = (noise.flatten(1).double() * gradients).sum(1)
    scores = (inner / (sigma * norms)).cpu().numpy()
    mean = float(scores.mean())
    return GaussianUnlearningScore(scores=scores, mean=mean, z=math.sqrt(len(scores)) * mean)


def _input_gradients(module: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of each row's loss in its input, as float64 of shape (n, size)."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = cross_entropy(module(x), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient.flatten(1).double()
