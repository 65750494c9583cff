"""The published form of Fast-NTK, from rows and their kernel: a slow, independent reference."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sums.solvers import Solution


def design_matrix(h: Tensor, J: Tensor, tangent_scale: float) -> Tensor:
    r"""Return the rows of the linearised model, of shape (n C, C (d + 1) + k).

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
    than `solve_schur` only where n C is smaller than the number of unknowns. h, J, labels and weights
    have shapes (n, d + 1), (n, C, k), (n,) and (n,).
    """
    design, start, error = _problem(h, J, labels, weights, tangent_scale, target_scale, centre)
    parameters = start - design.T @ _solve(design @ design.T, error, alpha)
    return _unpack(parameters, J.shape[1], h.shape[1])


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

    `forget` is a mask of shape (n,); the rest is as in `solve_dual`. See `published_step`.
    """
    design, start, error = _problem(h, J, labels, weights, tangent_scale, target_scale, centre)
    kernel = design @ design.T
    step = published_step(kernel, error, forget.repeat_interleave(J.shape[1]), alpha=alpha)
    parameters = start + design.T @ (step - _solve(kernel, error, alpha))
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

    `kernel` is J J^T of shape (m, m), without the ridge; `error` is e of shape (m,), with f_0 where the
    ridge is centred. Li et al., arXiv:2312.14923, equations 4 to 7.
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


def _solve(kernel: Tensor, error: Tensor, alpha: float) -> Tensor:
    shifted = kernel + alpha * torch.eye(len(kernel), dtype=kernel.dtype)
    return torch.cholesky_solve(error[:, None], torch.linalg.cholesky(shifted))[:, 0]


def _problem(
    h: Tensor,
    J: Tensor,
    labels: Tensor,
    weights: Tensor,
    tangent_scale: float,
    target_scale: float,
    centre: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of the design times sqrt(w), the centre as one vector, and what it gets wrong."""
    n_classes = J.shape[1]
    root = weights.double().sqrt().repeat_interleave(n_classes)
    design = design_matrix(h.double(), J.double(), tangent_scale) * root[:, None]
    start = design.new_zeros(design.shape[1])
    if centre is not None:
        start[len(start) - len(centre) :] = centre
    wanted = root * targets(labels, n_classes, target_scale).flatten()
    return design, start, design @ start - wanted


def _unpack(parameters: Tensor, n_classes: int, width: int) -> Solution:
    W, z = parameters.split([n_classes * width, len(parameters) - n_classes * width])
    return Solution(W.view(n_classes, width), z)
