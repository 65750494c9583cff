r"""Ridge solves of the linearised model: pure functions of tensors.

All minimise, over the readout W in R^{C x (d+1)} and the tangent coefficients z in R^k,

.. math::

    \sum_i w_i \| W \tilde h_i + \sqrt{s} J_i z - t_i \|^2 + \alpha (\|W\|^2 + \|z - z_0\|^2), \quad
    t_i = scale \, (onehot(y_i) - 1/C) .

Everything is in the units of the statistics; docs/user_guide/concepts.md has the problem in raw ones.
alpha multiplies the sum loss: the total ridge is the same before and after a deletion. z_0, the
centre, is zero at the pretrained anchor; at a fine-tuned one it stands for the pretrained values, so
that the ridge shrinks the whole displacement and not only what is left of it.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from ..exceptions import SolveError
from .reduction import Reduced
from .statistics import Statistics, add_gram, multiply_symmetric

ROUNDING = 1e-8  # the largest `rounding_bound` of exact sums


@dataclass(frozen=True)
class Solution:
    r"""The minimiser: W of shape (C, d + 1) and z of shape (k,), both float64.

    W multiplies the augmented features as they are in the statistics: where those hold tangent features,
    :math:`\sqrt{s}` is in W. `residual` is that of the normal equations, relative to their right-hand
    side; `path` is what each value of the grid was worth where the sums chose `alpha`. `kept` is the
    factorisation it came from, without class blocks: a Cholesky factor at one alpha, or a reduction.
    """

    W: Tensor
    z: Tensor
    residual: float = 0.0
    alpha: float = math.nan
    path: tuple[float, ...] = ()
    kept: Tensor | Reduced | None = None


def solve_schur(
    statistics: Statistics,
    *,
    alpha: float,
    tangent_scale: float,
    target_scale: float,
    centre: Tensor | None = None,
    L: Tensor | None = None,
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

    `centre` is z_0, zero by default, and L the Cholesky factor of A + alpha I where it is known. A
    SolveError says that the smallest eigenvalue of A + alpha I or of S fell below alpha / 2: rounding
    has used up the statistics, which must be rebuilt.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.sums.solvers import solve_schur
    >>> from fastntk_sk.sums.statistics import Statistics
    >>> learned = Statistics.zeros(1, 0, 2)
    >>> h = torch.tensor([[-1.0, 1.0], [1.0, 1.0]])
    >>> learned.add(h, torch.zeros(2, 2, 0), torch.tensor([0, 1]), torch.ones(2))
    >>> solve_schur(learned, alpha=0.5, tangent_scale=1.0, target_scale=1.0).W
    tensor([[-0.4000,  0.0000],
            [ 0.4000,  0.0000]], dtype=torch.float64)
    """
    A, B, G = statistics.A, statistics.B, statistics.G
    n_classes, root = len(B), tangent_scale**0.5
    scale = statistics.tangent_factors(tangent_scale)
    # sums of all rows, which the 1/C of t needs: the last rows of A and B_c hold them times the constant
    all_h, all_J = A[-1] / statistics.constant, B[:, -1].sum(0) / statistics.constant
    R = target_scale * scale * (statistics.H - all_h[:, None] / n_classes)
    r = target_scale * (statistics.r - all_J / n_classes)
    if L is None:
        L = factor((scale * A).mul_(scale.T), alpha)
    Y = torch.linalg.solve_triangular(L, R, upper=False)
    z = torch.zeros_like(r)
    pull = torch.zeros_like(r) if centre is None else alpha * centre
    if len(z) and tangent_scale:
        # without + alpha I, which `factor` adds; one X at a time, each as large as B_c
        S, rhs = G.tril().mul_(tangent_scale), r.clone()
        for c in range(n_classes):
            X = torch.linalg.solve_triangular(L, B[c], upper=False)
            add_gram(S, X, X, sign=-tangent_scale)
            rhs -= X.T @ Y[:, c]
            del X
        z = solve_factored(factor(S, alpha), (root * rhs + pull)[:, None])[:, 0]
        del S
    Bz = torch.stack([B[c] @ z for c in range(n_classes)], dim=1)
    W = solve_factored(L, R - root * Bz)
    # both rows of the normal equations, from the statistics themselves and not from their factors
    top = scale * multiply_symmetric(A, scale * W) + alpha * W + root * Bz - R
    bottom = torch.zeros_like(z)
    if len(z):
        Gz = multiply_symmetric(G, z[:, None])[:, 0]
        BW = sum(B[c].T @ W[:, c] for c in range(n_classes))
        bottom = tangent_scale * Gz + root * BW + alpha * z - root * r - pull
    size = torch.cat([R.flatten(), root * r + pull]).norm().clamp_min(torch.finfo(R.dtype).tiny)
    residual = float(torch.cat([top.flatten(), bottom]).norm() / size)
    kept = None if len(r) else L
    return Solution((scale * W).T.contiguous(), z, residual, alpha, kept=kept)


def factor(lower: Tensor, alpha: float) -> Tensor:
    """Factor `lower + alpha I`, and make sure that its smallest eigenvalue is at least alpha / 2.

    `lower` becomes `lower + alpha I`.
    """
    lower.diagonal().add_(alpha)
    L, failed = torch.linalg.cholesky_ex(lower)
    if failed or not smallest_eigenvalue(L) >= alpha / 2:
        raise SolveError(used_up(alpha))
    return L


def solve_factored(L: Tensor, right: Tensor) -> Tensor:
    """Return (L L^T)^-1 right; unlike `torch.cholesky_solve`, without a copy of L."""
    half = torch.linalg.solve_triangular(L, right, upper=False)
    return torch.linalg.solve_triangular(L.T, half, upper=True)


def smallest_eigenvalue(L: Tensor) -> float:
    r"""Estimate the smallest eigenvalue of :math:`M = L L^T` by inverse iteration from 8 random starts.

    The estimate is never below :math:`\lambda_{min}`, so that a sound matrix is never refused. The norms
    of successive steps never fall, hence after m of them it is at most
    :math:`\lambda_{min} (\|v\| / |v_1|)^{1/m}`, with :math:`v_1` the part of the start along the
    eigenvector. It is twice too large only where :math:`|v_1| < 2^{-m} \|v\|` in all starts, which for
    m = 10 and k = 4096 has a probability of 5e-2 with one start and 4e-11 with eight. Rounding alone
    does not come so far where `rounding_bound` is small; this is for Jacobians that drifted.
    """
    # A Cholesky of M - alpha / 2 would be certain, but costs as much as the first; this costs a fifth to
    # a third of it (measured at k = 1024 and 4096). Eight columns cost about twice what one does.
    start = torch.Generator().manual_seed(0)
    v = torch.randn(len(L), 8, generator=start, dtype=L.dtype).to(L.device)
    for _ in range(10):
        v = torch.linalg.solve_triangular(L, v / v.norm(dim=0), upper=False)
        v = torch.linalg.solve_triangular(L.T, v, upper=True)
    return float(1 / v.norm(dim=0).max())


def rounding_bound(left: float, removed: float, alpha: float, tangent_scale: float = 1.0) -> float:
    r"""Return how much rounding can leave in the parameters when rows are subtracted, relative to them.

    With the energies :math:`E = \sum_i w_i \|x_i\|^2`,
    :math:`\|x\|^2 = \|\tilde h\|^2 + \sum_c \|J_c\|^2`, of the rows that are left and of those that were
    ever removed,

    .. math::

        \epsilon \, \max(1, s) \, (E_{left} + E_{removed}) / \alpha
        + \epsilon \, E_{removed} / E_{left}, \quad \epsilon = 2^{-52} .

    Every addition rounds the sums by at most :math:`\epsilon E`, and a solve magnifies that by at most
    :math:`1 / \alpha`. The second term is for rows that are left with little weight: means and
    right-hand sides are as small as they are. In 1,500 random problems with outliers of up to 1e5 times
    the other rows, the parameters changed by at most half of the first term and :math:`\epsilon`
    together (median: a hundredth).
    """
    relative = removed / left if left > 0 else math.inf
    return sys.float_info.epsilon * (max(1.0, tangent_scale) * (left + removed) / alpha + relative)


def coarse(value: float) -> float:
    """Return the power of two at or above a measurement: more digits would tell which rows it was of.

    Somebody with the state could compare them with those of a row that he suspects was forgotten.

    >>> coarse(0.0), coarse(3e-15) == 2.0**-48
    (0.0, True)
    """
    return 2.0 ** math.ceil(math.log2(value)) if 0 < value < math.inf else value


def used_up(alpha: float) -> str:
    """Return what to say where the smallest eigenvalue is below alpha / 2."""
    return (
        "The statistics are no longer positive definite: their smallest eigenvalue fell below "
        f"alpha / 2 = {alpha / 2:g}. Rounding errors or Jacobians that drifted have used them up. "
        "Call rebuild(X, y) with the rows that are still learned, or raise alpha."
    )
