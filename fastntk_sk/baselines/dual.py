"""Fast-NTK as published, in the dual form, on the subset and on all parameters of the network."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.func import functional_call

from ..progress import progress
from ..sums.memory import require
from ..sums.ridge import solve
from ..tangents.jacobians import TangentNetwork
from ..tangents.model import Parameters
from ..tangents.subsets import Subset, select
from .dual_form import published_step, solve_published, targets
from .network import BaselineClassifier, Original

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 4 * 2**30


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
        If the kernel and its factors do not fit; the message says how many bytes they need.

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
    check_is_fitted(estimator)
    original, state = Original(estimator), estimator._state
    model, settings = state.model, state.settings
    n_classes, k = len(original.classes), model.projection.k
    n_rows = len(y_retain) + len(y_forget)
    _check_memory(n_rows, n_classes, n_classes * (model.d + 1) + k)
    batches, labels = original.all_batches((X_retain, y_retain), (X_forget, y_forget))
    h, J = map(torch.cat, zip(*map(model.tangents, batches), strict=True))
    forget, alpha = torch.arange(n_rows) >= len(y_retain), state.alpha
    scales = {"tangent_scale": settings.tangent_scale, "target_scale": settings.target_scale}
    kept = h[~forget].double()
    if not k:
        rest = model.empty_statistics()
        rest.add(kept, J[~forget], labels[~forget], torch.ones(len(kept)))
        alpha = solve(rest, alpha=settings.alpha, **scales).alpha
        h = h.double() - kept.mean(0)
    centre = model.centre()
    ones = torch.ones(n_rows)
    solution = solve_published(h, J, labels, ones, forget, alpha=alpha, centre=centre, **scales)
    W = solution.W
    if not k:  # the last column is constant, and zero around the mean
        wanted = targets(labels[~forget], n_classes, settings.target_scale).mean(0)
        W[:, -1] = (wanted - W @ kept.mean(0)) / rest.constant
    parameters = model.publish(W, solution.z)
    return original.at(parameters, y_retain, settings.predict_with == "network")


def dual_bytes(n_rows: int, n_classes: int, width: int = 0) -> int:
    """Return the bytes of the published form: kernel, blocks, a factor, and dense rows of `width`."""
    m = n_rows * n_classes
    return 8 * (4 * m * m + 2 * m * width)


def _check_memory(n_rows: int, n_classes: int, width: int = 0) -> int:
    """Return `dual_bytes`, or raise InsufficientMemoryError if they are not available."""
    needed = dual_bytes(n_rows, n_classes, width)
    require(
        needed,
        f"The dual form of {n_rows:,} rows x {n_classes} classes needs",
        "Use FastNTKClassifier.unlearn, whose memory does not depend on the number of rows.",
    )
    return needed


def full_ntk(
    estimator: Any,
    X_retain: Any,
    y_retain: Any,
    X_forget: Any,
    y_forget: Any,
    *,
    random_state: Any = None,
    block_bytes: int = _BLOCK_BYTES,
) -> BaselineClassifier:
    r"""Delete by the published formula with the Jacobian of every parameter of the network.

    The published step starts from the solution, on all rows, of the problem linearised at the trained
    weights, with labels as targets and the ridge centred at the pretrained weights. Adding the step to
    the trained weights themselves would leave most of what SGD memorised.

    The kernel is a sum over blocks of parameters, so that the n C x p Jacobian never exists: each block
    takes C backward passes over all rows. The step in weights, :math:`J^T v`, is a single backward pass.
    The size of the work is logged before it begins.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Fitted with anchor="finetuned"; not changed. With `verbose`, a progress bar is shown.

    X_retain, y_retain, X_forget, y_forget : array-like

    random_state : object, default=None
        Not used: the method is deterministic.

    block_bytes : int, default=4 GiB
        Size of a block of the float32 Jacobian.

    Returns
    -------
    unlearned : BaselineClassifier
        With all weights displaced.

    Raises
    ------
    ValueError
        For the pretrained anchor.

    InsufficientMemoryError
        If the kernel and a block do not fit.

    References
    ----------
    Li et al., "Fast-NTK: Parameter-Efficient Unlearning for Large-Scale Models", arXiv:2312.14923;
    Golatkar et al., "Forgetting Outside the Box", arXiv:2003.02960.

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
    if original.model.moved is None:
        raise ValueError(
            'Expected an estimator with anchor="finetuned", got the pretrained anchor, whose '
            "predictions are not those of a network with one set of weights. Fit with the other "
            "anchor, for which a ladder makes way for a subset of the network."
        )
    settings, model = estimator._state.settings, original.model
    net = model.displaced_copy(original.parameters.delta)
    W = original.parameters.W.to(model.directions)
    start = -model.displacement(original.parameters)  # to the pretrained values
    n_classes = len(original.classes)
    batches, labels = original.all_batches((X_retain, y_retain), (X_forget, y_forget))
    m = len(labels) * n_classes
    everything = select(net, "full")
    size = max(1, block_bytes // (4 * m))
    blocks = range(0, everything.size, size)
    needed = _check_memory(len(labels), n_classes) + 2 * block_bytes
    require(needed, "Kernel and block need", "Lower block_bytes or the number of rows.")
    logger.info(
        "full NTK: %d rows x %d classes x %d parameters in %d blocks, %.1f GiB",
        *(len(labels), n_classes, everything.size, len(blocks), needed / 2**30),
    )
    with torch.no_grad():
        h = torch.cat([net(batch).cpu() for batch in batches])
    h = torch.cat([h, h.new_ones(len(h), 1)], dim=1).double() / model.scale_h
    alpha = estimator._state.alpha
    kernel = torch.zeros(m, m, dtype=torch.float64)
    for first in progress(blocks, "full NTK", unit="block", show=estimator.verbose):
        J = _jacobian_block(net, everything, batches, W[:, :-1], first, first + size)
        kernel += (J @ J.T).double()
    energy = kernel.diagonal().mean().clamp_min(torch.finfo(kernel.dtype).tiny)
    weight = settings.tangent_scale / energy
    kernel *= weight
    view = kernel.view(len(labels), n_classes, len(labels), n_classes)
    readout_kernel = h @ h.T
    for c in range(n_classes):
        view[:, c, :, c] += readout_kernel
    # at the centre of the ridge, the pretrained values, W is zero: f_0 = J (theta_0 - theta)
    tangent = TangentNetwork(net, model.tangent.subset, batches[0][:2])
    change = torch.cat([tangent.directional(batch, start.to(W))[1].cpu() for batch in batches])
    at_centre = (change @ W[:, :-1].cpu().T).double()
    error = (at_centre - targets(labels, n_classes, settings.target_scale)).flatten()
    forget = (torch.arange(len(labels)) >= len(y_retain)).repeat_interleave(n_classes)
    dual = published_step(kernel, error, forget, alpha=alpha)
    kernel.diagonal().add_(alpha)
    dual -= torch.cholesky_solve(error[:, None], torch.linalg.cholesky(kernel))[:, 0]
    dual = dual.view(len(labels), n_classes)
    step = _transposed(net, everything, batches, W[:, :-1], dual)
    with torch.no_grad():
        centre = model.tangent.subset.split(start.to(W))
        for name, part in everything.split(step * weight.to(step)).items():
            parameter = net.get_parameter(name)
            parameter.add_(part + centre.get(name, 0))
    solved = Parameters((dual.T @ h / model.scale_h).to(W.dtype), torch.zeros_like(start))
    original.model = replace(model, backbone=replace(model.backbone, net=net))
    return original.at(solved, y_retain)


def _jacobian_block(
    net: torch.nn.Module, everything: Subset, batches: list[Tensor], V: Tensor, first: int, last: int
) -> Tensor:
    """Return columns `first` to `last` of the Jacobian of all parameters, of shape (n C, columns)."""
    ends = np.cumsum([0, *(shape.numel() for shape in everything.shapes)])
    inside = slice(np.searchsorted(ends, first, "right") - 1, np.searchsorted(ends, last))
    tangent = TangentNetwork(
        net, Subset(everything.names[inside], everything.shapes[inside]), batches[0][:2]
    )
    low, width = first - int(ends[inside.start]), min(last, everything.size) - first
    # made before it is filled: a list of parts would need the memory twice
    block = torch.empty(sum(map(len, batches)), len(V), width, dtype=V.dtype)
    for part, batch in zip(block.split([len(batch) for batch in batches]), batches, strict=True):
        _, J = tangent.jacobian(batch, V, lambda rows: rows[:, low : low + width].contiguous())
        part.copy_(J)
    return block.flatten(0, 1)


def _transposed(
    net: torch.nn.Module, everything: Subset, batches: list[Tensor], V: Tensor, dual: Tensor
) -> Tensor:
    """Return J^T v of shape (p,): one backward pass a batch."""
    leaves = [net.get_parameter(name).detach().clone().requires_grad_() for name in everything.names]
    total = torch.zeros(everything.size, dtype=V.dtype, device=V.device)
    parts = dual.to(V).split([len(batch) for batch in batches])
    for batch, part in zip(batches, parts, strict=True):
        named = dict(zip(everything.names, leaves, strict=True))
        with torch.enable_grad():
            product = ((functional_call(net, named, (batch,)) @ V.T) * part).sum()
        slopes = torch.autograd.grad(product, leaves, materialize_grads=True)
        total += torch.cat([slope.flatten() for slope in slopes])
    return total
