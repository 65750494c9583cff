"""Fast-NTK as published, in the dual form, on the subset and on all parameters of the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..modes import without_modes
from ..progress import progress
from ..sums.memory import require
from ..sums.ridge import solve
from ..sums.solvers import Solution
from ..tangents.jacobians import TangentNetwork
from ..tangents.model import Parameters
from ..tangents.subsets import Subset, select
from .network import BaselineClassifier, Original


@without_modes
def fast_ntk_dual(
    estimator: Any,
    X_retain: Any,
    y_retain: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    random_state: Any = None,
) -> BaselineClassifier:
    """Delete by the published formula on the subset, which needs all rows and O((n C)^3) operations.

    The linearised problem, and hence the result, are those of `FastNTKClassifier.unlearn`, except that
    every row has weight one. For a ladder or the head alone, whose intercept has no ridge, rows are
    centred at the mean of the retain set and alpha is the one that `unlearn` uses.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Fitted; not changed.

    X_retain, y_retain, X_forget, y_forget : array-like

    random_state : object, default=None
        Not used: the method is deterministic.

    Returns
    -------
    unlearned : BaselineClassifier

    Raises
    ------
    InsufficientMemoryError
        If the kernel and its factors do not fit.

    References
    ----------
    Li et al., "Fast-NTK: Parameter-Efficient Unlearning for Large-Scale Models", arXiv:2312.14923.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import fast_ntk_dual
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y)
    >>> published = fast_ntk_dual(clf, X[10:], y[10:], X[:10], y[:10])
    >>> ours = clf.unlearn(X[:10])
    >>> bool(np.allclose(published.decision_function(X), ours.decision_function(X), atol=1e-8))
    True
    """
    original, state = Original(estimator), estimator._state
    model, settings = state.model, state.settings
    n_classes, k = len(original.classes), model.projection.k
    n_rows = len(y_retain) + len(y_forget)
    require(
        dual_bytes(n_rows, n_classes, n_classes * (model.d + 1) + k),
        f"The dual form of {n_rows:,} rows x {n_classes} classes needs",
        "Use FastNTKClassifier.unlearn, whose memory does not depend on the number of rows.",
    )
    batches, labels = original.all_batches((X_retain, y_retain), (X_forget, y_forget))
    h, J = (torch.cat(parts).cpu() for parts in zip(*map(model.tangents, batches), strict=True))
    forget, alpha = torch.arange(n_rows) >= len(y_retain), state.alpha
    scales = {"tangent_scale": settings.tangent_scale, "target_scale": settings.target_scale}
    h, kept = h.double(), h[~forget].double()
    if not k:
        rest = model.empty_statistics()
        rest.add(kept, J[~forget], labels[~forget], torch.ones(len(kept)))
        alpha = solve(rest, alpha=settings.alpha, **scales).alpha
        h = h - kept.mean(0)
    solution = solve_published(h, J, labels, forget, alpha=alpha, centre=model.centre(), **scales)
    W = solution.W
    if not k:  # the last column is constant, and zero around the mean
        wanted = targets(labels[~forget], n_classes, settings.target_scale).mean(0)
        W[:, -1] = (wanted - W @ kept.mean(0)) / rest.constant
    parameters = model.publish(W, solution.z)
    return original.at(parameters, y_retain, settings.predict_with)


@without_modes
def full_ntk(
    estimator: Any,
    X_retain: Any,
    y_retain: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    random_state: Any = None,
    block_bytes: int = 4 * 2**30,
) -> BaselineClassifier:
    r"""Delete by the published formula with the Jacobian of every parameter of the network.

    The published step starts from the solution, on all rows, of the problem linearised at the trained
    weights, with labels as targets and the ridge centred at the pretrained weights. Adding the step to
    the trained weights themselves would leave most of what SGD memorised.

    The kernel is a sum over blocks of parameters, so that the n C x p Jacobian never exists: each block
    takes C backward passes over all rows. The step in weights, :math:`J^T v`, is a single backward pass.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Fitted with anchor="finetuned"; not changed. With `verbose`, a progress bar is shown.

    X_retain, y_retain, X_forget, y_forget, random_state
        As in :func:`fast_ntk_dual`.

    block_bytes : int, default=4 GiB
        Size of a block of the float32 Jacobian.

    Returns
    -------
    unlearned : BaselineClassifier
        With all weights displaced.

    Raises
    ------
    ValueError
        For another anchor, or augment="flip".

    InsufficientMemoryError
        If the kernel and a block do not fit.

    References
    ----------
    Li et al., arXiv:2312.14923; Golatkar et al., "Forgetting Outside the Box", arXiv:2003.02960.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import full_ntk
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = X[::3], y[::3]
    >>> clf = FastNTKClassifier(anchor="finetuned", max_epochs=2, random_state=0).fit(X, y)
    >>> full_ntk(clf, X[5:], y[5:], X[:5], y[:5]).classes_.tolist()
    [0, 1, 2]
    """
    original = Original(estimator)
    original.check_finetuned()
    if original.model.settings.augment is not None:
        raise ValueError(
            'Expected an estimator with augment=None, got "flip", whose scores are means of two passes: '
            "full_ntk takes the Jacobian of one. Fit without it, or take fast_ntk_dual."
        )
    model, settings, alpha = original.model, original.model.settings, estimator._state.alpha
    net = model.displaced_copy(original.parameters.delta)
    readout = original.parameters.W[:, :-1].to(model.directions)
    batches, labels = original.all_batches((X_retain, y_retain), (X_forget, y_forget))
    sizes, n_classes = [len(batch) for batch in batches], len(original.classes)
    require(
        dual_bytes(len(labels), n_classes) + 2 * block_bytes,
        f"The kernel of {len(labels):,} rows x {n_classes} classes, with a block of the Jacobian, needs",
        "Lower block_bytes or the number of rows.",
    )
    everything, m = select(net, "full"), len(labels) * n_classes
    size = max(1, block_bytes // (4 * m))
    kernel = torch.zeros(m, m, dtype=torch.float64)
    blocks = range(0, everything.size, size)
    for first in progress(blocks, "full NTK", unit="block", show=estimator.verbose):
        J = _jacobian_block(net, everything, batches, readout, first, first + size)
        kernel += (J @ J.T).double()
    energy = kernel.diagonal().mean().clamp_min(torch.finfo(kernel.dtype).tiny)
    weight = settings.tangent_scale / energy
    kernel *= weight
    with torch.no_grad():
        h = torch.cat([net(batch).cpu() for batch in batches])
    h = torch.cat([h, h.new_ones(len(h), 1)], dim=1).double() / model.scale_h
    blocks_of_classes = kernel.view(len(labels), n_classes, len(labels), n_classes)
    blocks_of_classes.diagonal(dim1=1, dim2=3).add_((h @ h.T)[:, :, None])
    # at the centre of the ridge, the pretrained values, W is zero: f_0 = J (theta_0 - theta)
    start = -model.displacement(original.parameters).to(readout)
    tangent = TangentNetwork(net, model.tangent.subset, batches[0][:2])
    change = torch.cat([tangent.directional(batch, start)[1].cpu() for batch in batches])
    error = (change @ readout.cpu().T).double() - targets(labels, n_classes, settings.target_scale)
    forget = (torch.arange(len(labels)) >= len(y_retain)).repeat_interleave(n_classes)
    dual = published_dual(kernel, error.flatten(), forget, alpha=alpha).view(-1, n_classes)
    with torch.enable_grad():
        net.requires_grad_()
        for batch, part in zip(batches, dual.to(readout).split(sizes), strict=True):
            ((net(batch) @ readout.T) * part).sum().backward()
    net.requires_grad_(False)
    centre = model.tangent.subset.split(start)
    for name, parameter in net.named_parameters():
        parameter += centre.get(name, 0)
        if parameter.grad is not None:
            parameter += weight.to(parameter) * parameter.grad
            parameter.grad = None
    W = (dual.T @ h / model.scale_h).to(original.parameters.W)
    found = original.at(Parameters(W, torch.zeros_like(original.parameters.delta)), y_retain)
    return replace(found, model=replace(model, backbone=replace(model.backbone, net=net)))


def dual_bytes(n_rows: int, n_classes: int, width: int = 0) -> int:
    """Return the bytes of the published form: kernel, blocks, a factor, and dense rows of `width`."""
    m = n_rows * n_classes
    return 8 * (4 * m * m + 2 * m * width)


def _jacobian_block(
    net: nn.Module, everything: Subset, batches: list[Tensor], readout: Tensor, first: int, last: int
) -> Tensor:
    """Return columns `first` to `last` of the Jacobian of all parameters, of shape (n C, columns)."""
    ends = np.cumsum([0, *(shape.numel() for shape in everything.shapes)])
    inside = slice(np.searchsorted(ends, first, "right") - 1, np.searchsorted(ends, last))
    tangent = TangentNetwork(
        net, Subset(everything.names[inside], everything.shapes[inside]), batches[0][:2]
    )
    low, width = first - int(ends[inside.start]), min(last, everything.size) - first
    # made before it is filled: a list of parts would need the memory twice
    block = torch.empty(sum(map(len, batches)), len(readout), width, dtype=readout.dtype)
    for part, batch in zip(block.split([len(batch) for batch in batches]), batches, strict=True):
        _, J = tangent.jacobian(batch, readout, lambda rows: rows[:, low : low + width].contiguous())
        part.copy_(J)
    return block.flatten(0, 1)


def targets(labels: Tensor, n_classes: int, target_scale: float) -> Tensor:
    """Return scale * (onehot - 1/C), float64 of shape (n, C)."""
    onehot = nn.functional.one_hot(labels, n_classes).double()
    return target_scale * (onehot - 1 / n_classes)


def solve_published(
    h: Tensor,
    J: Tensor,
    labels: Tensor,
    forget: Tensor,
    *,
    alpha: float,
    tangent_scale: float,
    target_scale: float,
    centre: Tensor | None = None,
) -> Solution:
    r"""Learn all rows, and forget those of a mask of shape (n,): see `published_dual`.

    h, J and labels have shapes (n, d + 1), (n, C, k) and (n,). Row (i, c) of the design is
    :math:`[e_c \otimes \tilde h_i, \sqrt{s} J_{ic}]`, and the ridge is centred at (0, `centre`).
    """
    _, n_classes, k = J.shape
    readout = torch.einsum("ce,id->iced", torch.eye(n_classes, dtype=torch.float64), h.double())
    design = torch.cat([readout.flatten(2), tangent_scale**0.5 * J.double()], dim=2).flatten(0, 1)
    parameters = design.new_zeros(design.shape[1])
    W, z = parameters.split([n_classes * h.shape[1], k])  # views
    if centre is not None:
        z += centre
    error = design @ parameters - targets(labels, n_classes, target_scale).flatten()
    forget = forget.repeat_interleave(n_classes)
    parameters += design.T @ published_dual(design @ design.T, error, forget, alpha=alpha)
    return Solution(W.view(n_classes, -1), z)


def published_dual(kernel: Tensor, error: Tensor, forget: Tensor, *, alpha: float) -> Tensor:
    r"""Return the solution on all rows and the step of Fast-NTK, as coefficients of the Jacobian's rows.

    With :math:`\Theta = J J^T + \alpha I` over rows of the retain set r and the forget set f, and
    :math:`e = f_0 - y`, the solution is :math:`-J^T \Theta^{-1} e`, and the step

    .. math::

        w_R = w_D + P J_f^T M u, \quad
        P = I - J_r^T \Theta_{rr}^{-1} J_r, \quad
        M = (\Theta_{ff} - \Theta_{fr} \Theta_{rr}^{-1} \Theta_{rf})^{-1}, \quad
        u = e_f - \Theta_{fr} \Theta_{rr}^{-1} e_r ,

    is :math:`J^T v` with :math:`v_f = M u` and :math:`v_r = -\Theta_{rr}^{-1} J_r J_f^T v_f`.

    `kernel` is J J^T of shape (m, m), to which the ridge is added in place; `error` is e of shape (m,),
    with f_0 where the ridge is centred. Li et al., arXiv:2312.14923, equations 4 to 7.
    """
    retain = ~forget
    kernel.diagonal().add_(alpha)
    v = -torch.cholesky_solve(error[:, None], torch.linalg.cholesky(kernel))[:, 0]
    theta_fr = kernel[forget][:, retain]
    gain = torch.cholesky_solve(theta_fr.T, torch.linalg.cholesky(kernel[retain][:, retain]))
    M_inverse = kernel[forget][:, forget] - theta_fr @ gain
    step = torch.linalg.solve(M_inverse, error[forget] - gain.T @ error[retain])
    v[forget] += step
    v[retain] -= gain @ step
    return v
