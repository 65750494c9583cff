"""SCRUB, SalUn and SSD, written from their papers' formulas and applied to the trainable subset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from ..tangents.jacobians import TangentNetwork
from ..training.finetuning import SubspaceNetwork
from .gradient import cross_entropy, seeded, wrong_labels
from .network import BaselineClassifier, Original, adamw, descend

_BATCH_NUMBERS = 2**28  # of the rows' gradients that are held at once


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
) -> BaselineClassifier:
    r"""Depart from the original on the forget set, and stay close to it on the retain set.

    .. math::

        \min_w \frac{\alpha}{N_r} \sum_r d(x_r; w^o, w) + \frac{\gamma}{N_r} \sum_r \ell(f(x_r; w), y_r)
        - \frac{1}{N_f} \sum_f d(x_f; w^o, w), \quad
        d = KL( p(f(x; w^o)) \,\|\, p(f(x; w)) ) ,

    alternating an epoch that maximises the last term with one that minimises the others; after
    `max_epochs` only the latter go on. p is a softmax at `temperature`, and d is multiplied by its
    square. One AdamW does both. (d has no gradient where the two models are the same: the first
    step on the forget set follows rounding errors, which are small beside `learning_rate`.)

    Parameters
    ----------
    estimator, X_retain, y_retain, X_forget, y_forget, random_state, learning_rate, batch_size
        As in :func:`finetune`.

    epochs : int
        Epochs on the retain set.

    max_epochs : int
        Epochs on the forget set.

    alpha, gamma, temperature : float

    forget_batch_size : int
        Rows a step of the epochs on the forget set.

    Returns
    -------
    unlearned : BaselineClassifier

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
    original, draws = Original(estimator), seeded(random_state)
    network, teacher = original.network(), original.network()
    optimiser = adamw(network, learning_rate)
    for epoch in range(epochs):
        if epoch < max_epochs:
            descend(
                original,
                network,
                X_forget,
                y_forget,
                lambda x, scores, *_: -departure(teacher, x, scores, temperature),
                optimiser,
                epochs=1,
                batch_size=forget_batch_size,
                draws=draws,
            )
        descend(
            original,
            network,
            X_retain,
            y_retain,
            lambda x, scores, *rest: (
                alpha * departure(teacher, x, scores, temperature)
                + gamma * cross_entropy(x, scores, *rest)
            ),
            optimiser,
            epochs=1,
            batch_size=batch_size,
            draws=draws,
        )
    return original.result(network, y_retain)


def departure(teacher: nn.Module, x: Tensor, scores: Tensor, temperature: float) -> Tensor:
    r"""Return :math:`T^2 KL( p_{teacher} \| p )`, the mean over a batch, of softmaxes at T."""
    with torch.no_grad():
        wanted = nn.functional.log_softmax(teacher(x) / temperature, dim=1)
    found = nn.functional.log_softmax(scores / temperature, dim=1)
    divergence = nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


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
) -> BaselineClassifier:
    r"""Train on random labels of the forget set, moving only salient weights.

    .. math::

        m = 1( |\nabla_w \ell(w^o; D_f)| \ge \gamma ), \quad
        \min_w E_{D_f, y' \ne y} \, \ell(m \odot w + (1 - m) \odot w^o; x, y')
        + \alpha \, E_{D_r} \, \ell(\cdot; x, y) ,

    with :math:`\gamma` the quantile of the gradient's size that leaves `sparsity` of the weights
    where they are (the paper's choice is the median, 0.5). Rows of both sets are mixed in batches.

    Parameters
    ----------
    estimator, X_retain, y_retain, X_forget, y_forget, random_state, epochs, learning_rate, batch_size
        As in :func:`finetune`.

    alpha : float
        Weight of the retain set.

    sparsity : float

    Returns
    -------
    unlearned : BaselineClassifier

    References
    ----------
    Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
    Classification and Generation", arXiv:2310.12508.

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
    original, draws = Original(estimator), seeded(random_state)
    network = original.network()
    slopes = [torch.zeros_like(t) for t in (network.z, network.W)]
    for batch, labels, _ in original.batches(X_forget, y_forget, batch_size):
        for total, slope in zip(slopes, _gradients(network, batch, labels), strict=True):
            total += slope * len(labels)
    sizes = torch.cat([slope.abs().flatten() for slope in slopes])
    threshold = sizes.kthvalue(1 + int(sparsity * (len(sizes) - 1))).values
    z_mask, W_mask = ((slope.abs() >= threshold).to(slope) for slope in slopes)
    wrong = wrong_labels(original, y_forget, draws)
    n_f, n_r = len(wrong), len(y_retain)
    weights = torch.tensor([1 / n_f] * n_f + [alpha / n_r] * n_r) * (n_f + n_r)
    X: ConcatDataset[Any] = ConcatDataset([original.rows(X).items for X in (X_forget, X_retain)])

    def weighted(_: Tensor, scores: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(scores, labels, reduction="none")
        return (losses * weights[rows].to(losses)).mean()

    descend(
        original,
        network,
        X,
        np.concatenate([wrong, np.asarray(y_retain)]),
        weighted,
        adamw(network, learning_rate),
        epochs=epochs,
        batch_size=batch_size,
        draws=draws,
        masks=(z_mask, W_mask),
    )
    return original.result(network, y_retain)


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
    estimator, X_retain, y_retain, X_forget, y_forget
        As in :func:`finetune`.

    random_state : object, default=None
        Not used: nothing is drawn.

    alpha : float
        Selection threshold. The ratio is at most N / N_f, for a weight that no other row uses: of a
        deletion of a tenth, nothing is selected from 10 on.

    dampening : float
        lambda.

    squares : tuple of Squares, default=None
        :func:`squared_gradients` of the retain and of the forget set, where several settings are
        tried on the same rows; None computes them.

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
    network = original.network()
    retain, forget = squares or (
        squared_gradients(estimator, X_retain, y_retain),
        squared_gradients(estimator, X_forget, y_forget),
    )
    model = original.model
    anchor = [
        model.backbone.net.get_parameter(name).detach().flatten() for name in model.tangent.subset.names
    ]
    values = [torch.cat([*anchor, network.z.new_zeros(0)]) + network.z.detach(), network.W.detach()]
    dampened = []
    for value, kept, gone in zip(values, retain.sums, forget.sums, strict=True):
        whole, own = (kept + gone) / (retain.n + forget.n), gone / forget.n
        beta = (dampening * whole / own.clamp_min(torch.finfo(own.dtype).tiny)).clamp_max(1)
        dampened.append(torch.where(own > alpha * whole, beta * value, value))
    with torch.no_grad():
        network.z.add_(dampened[0] - values[0])
        network.W.copy_(dampened[1])
    return original.result(network, y_retain)


def _gradients(network: SubspaceNetwork, batch: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    loss = nn.functional.cross_entropy(network(batch), labels)
    return torch.autograd.grad(loss, [network.z, network.W], materialize_grads=True)


@dataclass(frozen=True)
class Squares:
    """Sums of squared gradients of the rows' losses.

    Parameters
    ----------
    sums : tuple of Tensor of shapes (p,) and (C, d + 1)
        By the subset and by the readout.

    n : int
        Number of rows.
    """

    sums: tuple[Tensor, Tensor]
    n: int


def squared_gradients(estimator: Any, X: Any, y: Any) -> Squares:
    """Return what the diagonal Fisher information of SSD is made of.

    Parameters
    ----------
    estimator : FastNTKClassifier or BaselineClassifier
        Fitted; not changed.

    X, y : array-like

    Returns
    -------
    squares : Squares

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines.recent import squared_gradients
    >>> X, y = load_iris(return_X_y=True)
    >>> squared_gradients(FastNTKClassifier(random_state=0).fit(X, y), X, y).n
    150
    """
    original = Original(estimator)
    model, network = original.model, original.network()
    subset, readout = model.tangent.subset, network.W.detach()
    cotangent = readout[:, :-1] if network.V is None else readout[:, :-1] + network.V
    probe = model.backbone.synthetic(2, 0, model.settings.n_features, readout.dtype).to(readout.device)
    net = model.displaced_copy(original.parameters.delta) if model.ladder is None else model.ladder
    tangent = TangentNetwork(net, subset, probe)
    by_subset, by_readout = (torch.zeros_like(tensor) for tensor in (network.z, network.W))
    size = max(1, min(model.settings.batch_size, _BATCH_NUMBERS // max(1, subset.size)))
    for batch, labels, _ in original.batches(X, y, size):
        with torch.no_grad():
            slopes = network(batch).softmax(1)
            slopes[torch.arange(len(labels)), labels] -= 1
            features = nn.functional.pad(tangent.features(batch), (0, 1), value=1.0)
        by_subset += tangent.gradients(batch, slopes @ cotangent).square().sum(0)
        by_readout += slopes.square().T @ features.square()
    return Squares((by_subset, by_readout), len(y))
