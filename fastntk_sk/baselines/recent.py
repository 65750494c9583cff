"""SCRUB, SalUn and SSD, implemented from their papers' formulas on the trainable subset."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..modes import without_modes
from ..tangents.jacobians import TangentNetwork
from ..tangents.mirror import averaged
from ..tangents.model import Parameters
from .gradient import wrong_labels
from .network import BaselineClassifier, Original, Training, cross_entropy

Squares = tuple[Tensor, Tensor]  # of gradients in the subset and in the readout


@without_modes
def scrub(
    estimator: Any,
    X_retain: Any,
    y_retain: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    random_state: Any = None,
    epochs: int = 5,
    max_epochs: int = 2,
    alpha: float = 0.5,
    gamma: float = 1.0,
    temperature: float = 2.0,
    learning_rate: float = 5e-4,
    batch_size: int = 50,
    forget_batch_size: int = 16,
) -> Any:
    r"""Move away from the original on the forget set, and stay close to it on the retain set.

    .. math::

        \min_w \frac{\alpha}{N_r} \sum_r d(x_r; w^o, w) + \frac{\gamma}{N_r} \sum_r \ell(f(x_r; w), y_r)
        - \frac{1}{N_f} \sum_f d(x_f; w^o, w), \quad
        d = KL( p(f(x; w^o)) \,\|\, p(f(x; w)) ) ,

    by alternating an epoch that maximises the last term with one that minimises the others; after
    `max_epochs` only the latter continue. p is a softmax at `temperature`, and d is multiplied by its
    square. One AdamW optimises both.

    Parameters
    ----------
    estimator, X_retain, y_retain, X_forget, y_forget, random_state, learning_rate, batch_size
        As in :func:`finetune`.

    epochs, max_epochs : int
        Epochs on the retain set, and on the forget set.

    alpha, gamma, temperature : float

    forget_batch_size : int
        Rows in each step on the forget set.

    Returns
    -------
    unlearned : BaselineClassifier or ModuleClassifier

    References
    ----------
    Kurmanji et al., "Towards Unbounded Machine Unlearning", arXiv:2302.09880.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import scrub
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y)
    >>> scrub(clf, X[10:], y[10:], X[:10], y[:10], random_state=0).classes_.tolist()
    [0, 1, 2]
    """
    training = Training(estimator, X_forget, learning_rate, random_state)
    teacher = training.original.trainable()

    def depart(x: Tensor, scores: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        return -departure(teacher, x, scores, temperature)

    def stay(x: Tensor, scores: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        distance = departure(teacher, x, scores, temperature)
        return alpha * distance + gamma * cross_entropy(x, scores, labels, rows)

    for epoch in range(epochs):
        if epoch < max_epochs:
            training.run(X_forget, y_forget, depart, epochs=1, batch_size=forget_batch_size)
        training.run(X_retain, y_retain, stay, epochs=1, batch_size=batch_size)
    return training.result(y_retain)


def departure(teacher: nn.Module, x: Tensor, scores: Tensor, temperature: float) -> Tensor:
    r"""Return :math:`T^2 KL( p_{teacher} \| p )`, the mean over a batch, of softmaxes at T."""
    with torch.no_grad():
        wanted = nn.functional.log_softmax(teacher(x) / temperature, dim=1)
    found = nn.functional.log_softmax(scores / temperature, dim=1)
    divergence = nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


@without_modes
def salun(
    estimator: Any,
    X_retain: Any,
    y_retain: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    random_state: Any = None,
    epochs: int = 5,
    alpha: float = 1.0,
    sparsity: float = 0.5,
    learning_rate: float = 1e-3,
    batch_size: int = 50,
) -> Any:
    r"""Train on random labels of the forget set, moving only salient weights.

    .. math::

        m = 1( |\nabla_w \ell(w^o; D_f)| \ge \gamma ), \quad
        \min_w E_{D_f, y' \ne y} \, \ell(m \odot w + (1 - m) \odot w^o; x, y')
        + \alpha \, E_{D_r} \, \ell(\cdot; x, y) ,

    where :math:`\gamma` is the `sparsity` quantile of the gradients' absolute values. Batches mix rows
    of both sets.

    Parameters
    ----------
    estimator, X_retain, y_retain, X_forget, y_forget, random_state, epochs, learning_rate, batch_size
        As in :func:`finetune`.

    alpha : float
        Weight of the retain set.

    sparsity : float
        Share of the weights that is not moved; 0.5 in the paper.

    Returns
    -------
    unlearned : BaselineClassifier or ModuleClassifier

    References
    ----------
    Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency",
    arXiv:2310.12508.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import salun
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y)
    >>> salun(clf, X[10:], y[10:], X[:10], y[:10], random_state=0).classes_.tolist()
    [0, 1, 2]
    """
    training = Training(estimator, X_forget, learning_rate, random_state)
    original, trained = training.original, training.trained
    slopes = [torch.zeros_like(tensor) for tensor in trained]
    for batch, labels, _ in original.batches(X_forget, y_forget, batch_size):
        loss = nn.functional.cross_entropy(training.network(batch), labels, reduction="sum")
        parts = torch.autograd.grad(loss, trained, materialize_grads=True)
        for total, part in zip(slopes, parts, strict=True):
            total += part
    sizes = torch.cat([slope.abs().flatten() for slope in slopes])
    threshold = sizes.kthvalue(1 + int(sparsity * (len(sizes) - 1))).values
    for tensor, slope in zip(trained, slopes, strict=True):
        # a weight whose gradient is always zero is left where it is by AdamW without weight decay
        tensor.register_hook((slope.abs() >= threshold).to(tensor).mul)
    wrong = wrong_labels(original, y_forget, training.draws)
    n_f, n_r = len(wrong), len(y_retain)
    weights = torch.tensor([1 / n_f] * n_f + [alpha / n_r] * n_r) * (n_f + n_r)
    X = original.joined(X_forget, X_retain)
    y = np.concatenate([wrong, np.asarray(y_retain)])

    def weighted(x: Tensor, scores: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(scores, labels, reduction="none")
        return (losses * weights[rows].to(losses)).mean()

    training.run(X, y, weighted, epochs=epochs, batch_size=batch_size)
    return training.result(y_retain)


@without_modes
def ssd(
    estimator: Any,
    X_retain: Any,
    y_retain: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    random_state: Any = None,
    alpha: float = 10.0,
    dampening: float = 1.0,
    squares: tuple[Squares, Squares] | None = None,
) -> BaselineClassifier:
    r"""Dampen the weights that matter more to the forget set than to the whole training set.

    With the diagonal Fisher information :math:`I_D = E_D [ (\partial_w \ell)^2 ]`,

    .. math::

        w_i \leftarrow \beta_i w_i \ \text{ where } \ I_{D_f, i} > \alpha I_{D, i}, \quad
        \beta_i = \min( \lambda I_{D, i} / I_{D_f, i}, 1 ) .

    Parameters
    ----------
    estimator : FastNTKClassifier or BaselineClassifier
        Fitted; not changed.

    X_retain, y_retain, X_forget, y_forget, random_state
        As in :func:`finetune`; nothing is drawn.

    alpha, dampening : float
        Threshold and lambda. The ratio is at most N / N_f, for a weight that no other row uses: when a
        tenth of the rows is forgotten, alpha = 10 or more selects nothing.

    squares : tuple, default=None
        `squared_gradients` of the retain and of the forget set, for trying several settings on the
        same rows; None computes them.

    Returns
    -------
    unlearned : BaselineClassifier

    References
    ----------
    Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
    arXiv:2308.07707.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import ssd
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y)
    >>> ssd(clf, X[10:], y[10:], X[:10], y[:10]).classes_.tolist()
    [0, 1, 2]
    """
    original = Original(estimator)
    model, network = original.model, original.trainable()
    retain, forget = squares or (
        squared_gradients(estimator, X_retain, y_retain),
        squared_gradients(estimator, X_forget, y_forget),
    )
    n_r, n_f = len(y_retain), len(y_forget)
    z, W = network.z.detach(), network.W.detach()
    anchor = [model.backbone.net.get_parameter(name).flatten() for name in model.tangent.subset.names]
    theta = torch.cat([*anchor, z.new_zeros(0)]) + z
    change = []
    for value, kept, own in zip((theta, W), retain, forget, strict=True):
        whole = (n_r * kept + n_f * own) / (n_r + n_f)
        beta = (dampening * whole / own.clamp_min(torch.finfo(own.dtype).tiny)).clamp_max(1)
        change.append(torch.where(own > alpha * whole, beta - 1, 0.0) * value)
    delta, W = z + change[0], (W + change[1]) / original.sharpness
    return original.at(Parameters(W.cpu(), delta.detach().cpu()), y_retain)


def squared_gradients(estimator: Any, X: Any, y: Any) -> Squares:
    """Return the mean squared gradients of the rows' losses, of shapes (p,) and (C, d + 1).

    A row's gradient in the readout is an outer product, whose square needs no pass of its own.
    """
    original = Original(estimator)
    model, network = original.model, original.trainable()
    readout = network.W.detach()
    cotangent = readout[:, :-1] if network.V is None else readout[:, :-1] + network.V
    net = model.displaced_copy(original.parameters.delta) if model.ladder is None else model.ladder
    tangent = TangentNetwork(net, model.tangent.subset, model.synthetic(2))
    by_subset, by_readout = (torch.zeros_like(tensor) for tensor in (network.z, readout))
    for batch, labels, _ in original.batches(X, y, model.settings.batch_size):
        with torch.no_grad():
            slopes = network(batch).softmax(1)
            slopes[torch.arange(len(labels)), labels] -= 1
            h = averaged(tangent.features, batch, network.augment)
            features = nn.functional.pad(h, (0, 1), value=1.0)
        of_view = partial(tangent.gradients, cotangents=slopes @ cotangent)
        by_subset += averaged(of_view, batch, network.augment).square().sum(0)
        by_readout += slopes.square().T @ features.square()
    return by_subset / len(y), by_readout / len(y)
