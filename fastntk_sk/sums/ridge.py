r"""Ridge for features that all classes share: the intercept is free, and the sums can choose alpha.

With weighted means :math:`\bar x, \bar t` and a total weight n,

.. math::

    S = \sum w (x - \bar x)(x - \bar x)^T, \quad R = \sum w (x - \bar x)(t - \bar t)^T, \quad
    W = R^T (S + \alpha I)^{-1}, \quad b = \bar t - W \bar x .
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal, lapack, solveh_banded
from torch import Tensor

from ..exceptions import SolveError
from .solvers import Solution, factor, solve_schur, used_up
from .statistics import Statistics, multiply_symmetric

GRID = tuple(10.0 ** (e / 4) for e in range(-16, 9))
_TIE = 1e-5  # of a path that rounding moves by 1e-8: what a refit chooses must not hang on it
TANGENT_ALPHA = 0.25  # chosen on held-out rows for tangents of norm layers


def solve(
    statistics: Statistics,
    *,
    alpha: float | None,
    tangent_scale: float,
    target_scale: float,
    centre: Tensor | None = None,
) -> Solution:
    r"""Solve from the statistics: by `solve_schur` where there are tangents, else as this module says.

    alpha=None is 0.25 with tangents. Without, it is the value of `GRID` at which the evidence of
    Bayesian ridge regression (MacKay, Neural Computation 4(3), 1992) has its first maximum on the way
    down from the largest alpha: the global one runs to the edge of the grid where rows are fewer than
    features. It is a function of the sums alone, so that after a deletion it is what a refit chooses. A
    SolveError says that the smallest eigenvalue fell below alpha / 2. `centre` is
    that of `solve_schur`, for tangents only.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.sums.ridge import solve
    >>> from fastntk_sk.sums.statistics import Statistics
    >>> learned = Statistics.zeros(1, 0, 2)
    >>> x = torch.tensor([[3.0, 1.0], [5.0, 1.0]])
    >>> learned.add(x, torch.zeros(2, 2, 0), torch.tensor([0, 1]), torch.ones(2))
    >>> solve(learned, alpha=2.0, tangent_scale=1.0, target_scale=1.0).W
    tensor([[-0.2500,  1.0000],
            [ 0.2500, -1.0000]], dtype=torch.float64)
    """
    if statistics.has_tangents:
        return solve_schur(
            statistics,
            alpha=TANGENT_ALPHA if alpha is None else alpha,
            tangent_scale=tangent_scale,
            target_scale=target_scale,
            centre=centre,
        )
    if alpha is None:
        return solve_each(statistics, [None], tangent_scale=1.0, target_scale=target_scale)[0]
    S, R = centred(statistics, target_scale)
    return _solution(statistics, target_scale, S, R, alpha, torch.cholesky_solve(R, factor(S, alpha)))


def solve_each(
    statistics: Statistics,
    alphas: Sequence[float | None],
    *,
    tangent_scale: float,
    target_scale: float,
) -> list[Solution]:
    """Return the solutions of `solve` at several alphas, without tangents from one reduction."""
    if statistics.has_tangents:
        fixed = partial(solve, statistics, tangent_scale=tangent_scale, target_scale=target_scale)
        return [fixed(alpha=alpha) for alpha in alphas]
    S, R = centred(statistics, target_scale)
    reduced = Tridiagonal(S)
    rotated = reduced.rotate(R.numpy())
    solutions = []
    for alpha in alphas:
        path: tuple[float, ...] = ()
        if alpha is None:
            n = statistics.counts.sum()
            energy = target_scale**2 * float((statistics.counts * (1 - statistics.counts / n)).sum())
            path = evidence_path(reduced, rotated, energy, float(n))
            alpha = GRID[first_minimum(path)]
        if reduced.eigenvalues[0] < -alpha / 2:
            raise SolveError(used_up(alpha))
        W = torch.from_numpy(reduced.rotate(reduced.solve(alpha, rotated), back=True))
        solutions.append(_solution(statistics, target_scale, S, R, alpha, W, path))
    return solutions


def number(alpha: float | str) -> float | None:
    """Return the parameter as `solve` takes it: None for "auto"."""
    return None if alpha == "auto" else float(alpha)


def centred(statistics: Statistics, target_scale: float) -> tuple[Tensor, Tensor]:
    """Return S, of which the lower triangle is valid, and R."""
    n, total = statistics.counts.sum(), statistics.A[-1, :-1] / statistics.constant
    S = torch.addr(statistics.A[:-1, :-1], total, total / n, alpha=-1)
    return S, target_scale * (statistics.H[:-1] - torch.outer(total, statistics.counts / n))


def _solution(
    statistics: Statistics,
    target_scale: float,
    S: Tensor,
    R: Tensor,
    alpha: float,
    W: Tensor,
    path: tuple[float, ...] = (),
) -> Solution:
    """Return W^T with its intercept and its residual."""
    n, constant = statistics.counts.sum(), statistics.constant
    error = multiply_symmetric(S, W) + alpha * W - R
    residual = float(error.norm() / R.norm().clamp_min(torch.finfo(R.dtype).tiny))
    mean = target_scale * (statistics.counts / n - 1 / len(statistics.counts))
    b = (mean - statistics.mean @ W) / constant
    return Solution(
        torch.cat([W, b[None]]).T.contiguous(), torch.zeros(0, dtype=W.dtype), residual, alpha, path
    )


class Tridiagonal:
    """S = Q T Q^T with T tridiagonal: one reduction serves every alpha.

    `lower` is float64 of shape (k, k), of which the lower triangle is read; `eigenvalues` ascend.
    """

    def __init__(self, lower: Tensor) -> None:
        work, _ = lapack.dsytrd_lwork(len(lower), lower=1)
        a = np.array(lower.numpy(), order="F")
        reflectors, diagonal, off, self._tau, _ = lapack.dsytrd(
            a, lower=1, lwork=int(work), overwrite_a=1
        )
        self._reflectors = np.asfortranarray(reflectors[1:, :-1])
        self._bands = np.vstack([np.r_[0.0, off], diagonal])
        self.eigenvalues = eigvalsh_tridiagonal(diagonal, off)

    def rotate(self, right: np.ndarray, *, back: bool = False) -> np.ndarray:
        """Return Q^T right, or Q right, of shape (k, m)."""
        out = np.array(right, order="F")
        if len(out) > 1:
            transposed, work = "N" if back else "T", 64 * out.shape[1]
            lower = np.asfortranarray(out[1:])
            out[1:] = lapack.dormqr("L", transposed, self._reflectors, self._tau, lower, work)[0]
        return out

    def solve(self, alpha: float, rotated: np.ndarray) -> np.ndarray:
        """Return (T + alpha I)^-1 rotated."""
        bands = self._bands.copy()
        bands[1] += alpha
        return rotated / bands[1] if len(rotated) == 1 else solveh_banded(bands, rotated)


def evidence_path(S: Tridiagonal, rotated: np.ndarray, energy: float, n: float) -> tuple[float, ...]:
    r"""Return minus twice the log evidence over `GRID`, a class, but for constants.

    Classes share the variance of their noise, taken at its most likely value, and the intercept has a
    flat prior:

    .. math:: (n - 1) \log q(\alpha) + \log |I + S / \alpha|, \quad
              q(\alpha) = \sum w \|t - \bar t\|^2 - \operatorname{tr} R^T (S + \alpha I)^{-1} R .

    `rotated` is Q^T R of shape (k, C), `energy` the first term of q, n the sum of the weights. The path
    is all zeros where there is nothing to learn: one class, or a total weight of one or less.
    """
    if n <= 1 or energy <= 0:
        return (0.0,) * len(GRID)
    smallest = np.finfo(float).eps * energy
    path = []
    for alpha in GRID:
        if S.eigenvalues[0] < -alpha / 2:  # rounding has used the sums up: never chosen
            path.append(sys.float_info.max)
            continue
        q = max(smallest, energy - float((rotated * S.solve(alpha, rotated)).sum()))
        path.append((n - 1) * math.log(q) + float(np.log1p(S.eigenvalues.clip(0) / alpha).sum()))
    return tuple(path)


def first_minimum(path: Sequence[float]) -> int:
    """Return where a path has its first minimum from its end; of values as good as equal, the last."""
    i = len(path) - 1
    while i and path[i - 1] < path[i] - _TIE * abs(path[i]):
        i -= 1
    return i
