r"""Ridge solves of the linearised model: pure functions of tensors.

All minimise, over the readout W in R^{C x (d+1)} and the tangent coefficients z in R^k,

.. math::

    \sum_i w_i \| W \tilde h_i + \sqrt{s} J_i z - t_i \|^2 + \alpha (\|W\|^2 + \|z - z_0\|^2), \quad
    t_i = scale \, (onehot(y_i) - 1/C) .

alpha multiplies the sum loss: the total ridge is the same before and after a deletion. z_0, the
centre, is zero at the pretrained anchor; at a fine-tuned one it stands for the pretrained values, so
that the ridge shrinks the whole displacement and not only what is left of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..exceptions import SolveError
from .statistics import Statistics, add_gram, multiply_symmetric


@dataclass(frozen=True)
class Solution:
    r"""The minimiser.

    Parameters
    ----------
    W : float64 Tensor of shape (C, d + 1)
        Times the augmented features as they are in the statistics: where those hold tangent features,
        :math:`\sqrt{s}` is in W.

    z : float64 Tensor of shape (k,)

    residual : float
        Norm of the residual of the normal equations over the norm of their right-hand side.

    alpha : float
        The ridge.

    path : tuple of float
        Where the sums chose alpha, what each value of the grid was worth.
    """

    W: Tensor
    z: Tensor
    residual: float = 0.0
    alpha: float = math.nan
    path: tuple[float, ...] = ()


def solve_schur(
    statistics: Statistics,
    *,
    alpha: float,
    tangent_scale: float,
    target_scale: float,
    centre: Tensor | None = None,
) -> Solution:
    r"""Solve from the statistics by eliminating the readout.

    One Cholesky factor of :math:`A + \alpha I = L L^T` serves all classes; with
    :math:`X_c = L^{-1} B_c` and :math:`Y = L^{-1} R`,

    .. math::

        S = s G + \alpha I - s \sum_c X_c^T X_c, \quad
        S z = \sqrt{s} \Big( r - \sum_c X_c^T Y_c \Big) + \alpha z_0, \quad
        W_c = L^{-T} (Y_c - \sqrt{s} X_c z),

    at a cost of O((d+1)^3 + C (d+1)^2 k + C (d+1) k^2 + k^3), whatever the number of rows. Tangent
    features that all classes share (the pseudo kernel) are multiplied by :math:`\sqrt{s}` within
    :math:`\tilde h`; then k = 0 and the cost is O((d+1)^3), whatever the number of classes.

    Parameters
    ----------
    statistics : Statistics

    alpha : float
        Ridge, positive.

    tangent_scale : float
        s, nonnegative.

    target_scale : float

    centre : float64 Tensor of shape (k,), default=None
        z_0; None is zero.

    Returns
    -------
    solution : Solution

    Raises
    ------
    SolveError
        If the smallest eigenvalue of A + alpha I or of S fell below alpha / 2: rounding has used up
        the statistics, which must be rebuilt.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.sums.solvers import solve_schur
    >>> from fastntk_sk.sums.statistics import Statistics
    >>> learned = Statistics(1, 0, 2)
    >>> h = torch.tensor([[-1.0, 1.0], [1.0, 1.0]])
    >>> learned.add(h, torch.zeros(2, 2, 0), torch.tensor([0, 1]), torch.ones(2))
    >>> solve_schur(learned, alpha=0.5, tangent_scale=1.0, target_scale=1.0).W
    tensor([[-0.4000,  0.0000],
            [ 0.4000,  0.0000]], dtype=torch.float64)
    """
    B = statistics.B
    n_classes, root = len(statistics.counts), tangent_scale**0.5
    scale = torch.ones(len(statistics.A), 1, dtype=torch.float64)
    scale[len(scale) - 1 - statistics.n_tangents : -1] = root
    all_h = statistics.A[-1] / statistics.constant
    R = target_scale * scale * (statistics.H - all_h[:, None] / n_classes)
    all_J = B[:, -1].sum(0) / statistics.constant
    r = target_scale * (statistics.r - all_J / n_classes)
    L = factor(statistics.A, alpha, scale if statistics.n_tangents else None)
    Y = torch.linalg.solve_triangular(L, R, upper=False)
    z = torch.zeros_like(r)
    pull = torch.zeros_like(r) if centre is None else alpha * centre
    if len(z) and tangent_scale:
        S = statistics.G.tril().mul_(tangent_scale)
        rhs = r.clone()
        for c in range(n_classes):
            X = torch.linalg.solve_triangular(L, B[c], upper=False)
            add_gram(S, X, X, sign=-tangent_scale)
            rhs -= X.T @ Y[:, c]
        z = torch.cholesky_solve((root * rhs + pull)[:, None], factor(S, alpha))[:, 0]
    Bz = torch.stack([B[c] @ z for c in range(n_classes)], dim=1)
    W = torch.cholesky_solve(R - root * Bz, L)
    # residual of the normal equations, from the statistics themselves
    top = scale * multiply_symmetric(statistics.A, scale * W) + alpha * W + root * Bz - R
    bottom = torch.zeros_like(z)
    if len(z):
        Gz = multiply_symmetric(statistics.G, z[:, None])[:, 0]
        BW = sum(B[c].T @ W[:, c] for c in range(n_classes))
        bottom = tangent_scale * Gz + root * BW + alpha * z - root * r - pull
    size = torch.cat([R.flatten(), root * r + pull]).norm().clamp_min(torch.finfo(R.dtype).tiny)
    residual = float(torch.cat([top.flatten(), bottom]).norm() / size)
    return Solution((scale * W).T.contiguous(), z, residual, alpha)


def factor(lower: Tensor, alpha: float, scale: Tensor | None = None) -> Tensor:
    """Factor `lower + alpha I`, and make sure that its smallest eigenvalue is at least alpha / 2.

    Rows and columns of `lower` are multiplied by `scale` first.
    """
    shifted = lower.clone()
    if scale is not None:
        shifted.mul_(scale).mul_(scale.T)
    shifted.diagonal().add_(alpha)
    L, failed = torch.linalg.cholesky_ex(shifted)
    if failed or not smallest_eigenvalue(L) >= alpha / 2:
        raise SolveError(used_up(alpha))
    return L


def smallest_eigenvalue(L: Tensor) -> float:
    """Estimate the smallest eigenvalue of L L^T by 16 steps of inverse iteration.

    Up to rounding the estimate is never below it, so that a sound matrix is never refused; from a
    random start, 16 steps all but reach an eigenvalue that is half of the next ones, or less.
    """
    start = torch.Generator(L.device).manual_seed(0)
    v = torch.randn(len(L), 1, generator=start, dtype=L.dtype, device=L.device)
    for _ in range(16):
        v = torch.linalg.solve_triangular(L, v / v.norm(), upper=False)
        v = torch.linalg.solve_triangular(L.T, v, upper=True)
    return float(1 / v.norm())


def used_up(alpha: float) -> str:
    """Return what to say where the smallest eigenvalue is below alpha / 2."""
    return (
        "The statistics are no longer positive definite: their smallest eigenvalue fell below "
        f"alpha / 2 = {alpha / 2:g}. Rounding errors or Jacobians that drifted have used them up. "
        "Call rebuild(X, y) with the rows that are still learned, or raise alpha."
    )


def design_matrix(h: Tensor, J: Tensor, tangent_scale: float) -> Tensor:
    r"""Return the rows of the linearised model for every sample and class.

    Parameters
    ----------
    h : Tensor of shape (n, d + 1)

    J : Tensor of shape (n, C, k)

    tangent_scale : float

    Returns
    -------
    design : Tensor of shape (n * C, C * (d + 1) + k)
        Row (i, c) is :math:`[e_c \otimes \tilde h_i, \sqrt{s} J_{ic}]`.
    """
    n, n_classes = J.shape[:2]
    eye = torch.eye(n_classes, dtype=h.dtype, device=h.device)
    readout = torch.einsum("ce,id->iced", eye, h).reshape(n * n_classes, -1)
    return torch.cat([readout, tangent_scale**0.5 * J.reshape(n * n_classes, -1)], dim=1)


def targets(labels: Tensor, n_classes: int, target_scale: float) -> Tensor:
    """Return scale * (onehot - 1/C), float64 of shape (n, C)."""
    onehot = torch.nn.functional.one_hot(labels, n_classes).double()
    return target_scale * (onehot - 1 / n_classes)


def solve_dual(
    h: Tensor,
    J: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    alpha: float,
    tangent_scale: float,
    target_scale: float,
    centre: Tensor | None = None,
) -> Solution:
    r"""Solve from the rows through the (n C) x (n C) kernel.

    With the rows of `design_matrix` times :math:`\sqrt{w}` as :math:`\Phi` and the centre
    :math:`u_0 = (0, z_0)`, the parameters are
    :math:`u_0 + \Phi^T (\Phi \Phi^T + \alpha I)^{-1} (\sqrt{w} t - \Phi u_0)`: O((n C)^3), cheaper
    than `solve_schur` only where n C is smaller than the number of unknowns. A reference and a
    baseline; the estimator never keeps rows.

    Parameters
    ----------
    h : Tensor of shape (n, d + 1)

    J : Tensor of shape (n, C, k)

    labels : int64 Tensor of shape (n,)

    weights : Tensor of shape (n,)

    alpha, tangent_scale, target_scale : float

    centre : Tensor of shape (k,), default=None
        z_0; None is zero.

    Returns
    -------
    solution : Solution
    """
    problem = _problem(h, J, labels, weights, tangent_scale, target_scale, centre)
    kernel = problem.design @ problem.design.T
    kernel.diagonal().add_(alpha)
    dual = torch.cholesky_solve(problem.error[:, None], torch.linalg.cholesky(kernel))[:, 0]
    return _unpack(problem.start - problem.design.T @ dual, J.shape[1], h.shape[1])


def solve_published(
    h: Tensor,
    J: Tensor,
    labels: Tensor,
    weights: Tensor,
    forget: Tensor,
    *,
    alpha: float,
    tangent_scale: float,
    target_scale: float,
    centre: Tensor | None = None,
) -> Solution:
    """Forget rows by the formula of Fast-NTK as published, from the model learned on all rows.

    The readable reference: it needs all rows and O((n C)^3). See `published_step`.

    Parameters
    ----------
    h, J, labels, weights, alpha, tangent_scale, target_scale, centre
        As in `solve_dual`.

    forget : bool Tensor of shape (n,)

    Returns
    -------
    solution : Solution

    References
    ----------
    Li et al., "Fast-NTK: Parameter-Efficient Unlearning for Large-Scale Models", arXiv:2312.14923.
    """
    scales = {"alpha": alpha, "tangent_scale": tangent_scale, "target_scale": target_scale}
    learned = solve_dual(h, J, labels, weights, **scales, centre=centre)
    problem = _problem(h, J, labels, weights, tangent_scale, target_scale, centre)
    kernel = problem.design @ problem.design.T
    forgotten = forget.repeat_interleave(J.shape[1])
    dual = published_step(kernel, problem.error, forgotten, alpha=alpha)
    parameters = torch.cat([learned.W.flatten(), learned.z]) + problem.design.T @ dual
    return _unpack(parameters, J.shape[1], h.shape[1])


def published_step(kernel: Tensor, error: Tensor, forget: Tensor, *, alpha: float) -> Tensor:
    r"""Return the step of Fast-NTK from the kernel alone, as coefficients of the Jacobian's rows.

    With :math:`\Theta = J J^T + \alpha I` over rows of the retain set r and the forget set f, and
    :math:`e = f_0 - y`,

    .. math::

        w_R = w_D + P J_f^T M V, \quad
        P = I - J_r^T \Theta_{rr}^{-1} J_r, \quad
        M = (\Theta_{ff} - \Theta_{fr} \Theta_{rr}^{-1} \Theta_{rf})^{-1}, \quad
        V = e_f - \Theta_{fr} \Theta_{rr}^{-1} e_r ,

    so that the step is :math:`J^T v` with :math:`v_f = M V` and
    :math:`v_r = -\Theta_{rr}^{-1} J_r J_f^T v_f`.

    Parameters
    ----------
    kernel : Tensor of shape (m, m)
        J J^T, without the ridge.

    error : Tensor of shape (m,)
        e, with f_0 where the ridge is centred.

    forget : bool Tensor of shape (m,)

    alpha : float

    Returns
    -------
    coefficients : Tensor of shape (m,)
        v.

    References
    ----------
    Li et al., arXiv:2312.14923, equations 4 to 7.
    """
    retain = ~forget
    theta_fr = kernel[forget][:, retain]
    theta_rr, theta_ff = (kernel[rows][:, rows].clone() for rows in (retain, forget))
    for block in (theta_rr, theta_ff):
        block.diagonal().add_(alpha)
    gain = torch.cholesky_solve(theta_fr.T, torch.linalg.cholesky(theta_rr))
    M_inverse = theta_ff - theta_fr @ gain
    V = error[forget] - gain.T @ error[retain]
    coefficients = torch.empty_like(error)
    coefficients[forget] = torch.linalg.solve(M_inverse, V)
    coefficients[retain] = -gain @ coefficients[forget]
    return coefficients


class _Problem(NamedTuple):
    """Rows of the design times sqrt(w), the centre as one vector, and what it gets wrong."""

    design: Tensor
    start: Tensor
    error: Tensor


def _problem(
    h: Tensor,
    J: Tensor,
    labels: Tensor,
    weights: Tensor,
    tangent_scale: float,
    target_scale: float,
    centre: Tensor | None,
) -> _Problem:
    n_classes = J.shape[1]
    root = weights.double().sqrt().repeat_interleave(n_classes)
    design = design_matrix(h.double(), J.double(), tangent_scale) * root[:, None]
    start = design.new_zeros(design.shape[1])
    if centre is not None:
        start[len(start) - len(centre) :] = centre
    wanted = root * targets(labels, n_classes, target_scale).flatten()
    return _Problem(design, start, design @ start - wanted)


def _unpack(parameters: Tensor, n_classes: int, width: int) -> Solution:
    W, z = parameters.split([n_classes * width, len(parameters) - n_classes * width])
    return Solution(W.view(n_classes, width), z)
