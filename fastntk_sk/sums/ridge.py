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
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..exceptions import SolveError
from .downdate import Lessened, columns_of_rows, downdate
from .reduction import Reduced, reduce_symmetric
from .solvers import Solution, factor, solve_factored, solve_schur, used_up
from .statistics import Statistics, multiply_symmetric

GRID = tuple(10.0 ** (e / 4) for e in range(-16, 9))
_TIE = 1e-5  # of a path that rounding moves by 1e-8: what a refit chooses must not hang on it
_SOUND = 1e-12  # the largest residual of a solution from what was kept: of new ones it is about 1e-15
TANGENT_ALPHA = 0.25  # chosen on held-out rows for tangents of norm layers


def solve(
    statistics: Statistics,
    *,
    alpha: float | None,
    tangent_scale: float,
    target_scale: float,
    centre: Tensor | None = None,
    L: Tensor | None = None,
) -> Solution:
    r"""Solve from the statistics: by `solve_schur` where there are tangents, else as this module says.

    alpha=None is 0.25 with tangents. Without, it is the value of `GRID` at which the evidence of
    Bayesian ridge regression (MacKay, Neural Computation 4(3), 1992) has its first maximum on the way
    down from the largest alpha: the global one runs to the edge of the grid where rows are fewer than
    features. It is a function of the sums alone, so that after a deletion it is what a refit chooses. A
    SolveError says that the smallest eigenvalue fell below alpha / 2. `centre` is that of `solve_schur`,
    for tangents only, and L, for an alpha that is known, the Cholesky factor that a solution keeps.

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
            L=L,
        )
    if alpha is None:
        return _by_evidence(statistics, reduce_symmetric(centred(statistics)), target_scale)
    if L is None:
        L = factor(centred(statistics), alpha)
    R = centred_targets(statistics, target_scale)
    return replace(_solution(statistics, solve_factored(L, R), R, alpha, target_scale), kept=L)


def solve_without(
    kept: Tensor | Reduced,
    mean: Tensor,
    rest: Statistics,
    h: Tensor,
    weights: Tensor,
    *,
    alpha: float | None,
    tangent_scale: float,
    target_scale: float,
) -> Solution | None:
    """Return what `solve` returns for sums that rows have left, from what the solution before has kept.

    Parameters
    ----------
    kept : Tensor or Reduced
        Of the solution before, at the same parameters.

    mean : Tensor of shape (d,)
        Of the rows before.

    rest : Statistics
        What is left, without class blocks (k = 0).

    h : Tensor of shape (n, d + 1)
        Augmented features of the rows that have left, float64.

    weights : Tensor of shape (n,)
        Float64.

    alpha, tangent_scale, target_scale
        As in :func:`solve`.

    Returns
    -------
    solution : Solution or None
        None where cancellation has left too large a residual of the normal equations, which the sums
        themselves give. A reduction is not kept on: its basis tells of the rows that have left.
    """
    if rest.has_tangents:
        U = (h * weights.sqrt()[:, None]).T * rest.tangent_factors(tangent_scale)
    else:
        U = columns_of_rows(mean, rest, h, weights)
    less = Lessened(kept, U) if isinstance(kept, Reduced) else downdate(kept, U)
    if less is None:
        return None
    solution = solve_again(
        less, rest, alpha=alpha, tangent_scale=tangent_scale, target_scale=target_scale
    )
    if solution is None or isinstance(less, Tensor):
        return solution
    return replace(solution, kept=None)


def solve_again(
    kept: Tensor | Reduced,
    statistics: Statistics,
    *,
    alpha: float | None,
    tangent_scale: float,
    target_scale: float,
) -> Solution | None:
    """Return what `solve` returns, from what a solution for the same rows with other targets has kept.

    Other parameters are those of :func:`solve`. None where the residual of the normal equations, which
    the sums themselves give, is too large.
    """
    if isinstance(kept, Reduced):
        try:
            solution = _by_evidence(statistics, kept, target_scale, alpha)
        except SolveError:
            return None
    else:
        solution = solve(
            statistics, alpha=alpha, tangent_scale=tangent_scale, target_scale=target_scale, L=kept
        )
    return solution if solution.residual <= _SOUND else None


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
    reduced = reduce_symmetric(centred(statistics))
    return [_by_evidence(statistics, reduced, target_scale, alpha) for alpha in alphas]


def number(alpha: float | str) -> float | None:
    """Return the parameter as `solve` takes it: None for "auto"."""
    return None if alpha == "auto" else float(alpha)


def centred(statistics: Statistics) -> Tensor:
    """Return S of shape (d, d), of which the lower triangle is valid."""
    return torch.addr(statistics.A[:-1, :-1], statistics.total, statistics.mean, alpha=-1)


def centred_targets(statistics: Statistics, target_scale: float) -> Tensor:
    """Return R of shape (d, C)."""
    shares = statistics.counts / statistics.counts.sum()
    return target_scale * (statistics.H[:-1] - torch.outer(statistics.total, shares))


def _by_evidence(
    statistics: Statistics, reduced: Reduced, target_scale: float, alpha: float | None = None
) -> Solution:
    """Return the solution at an alpha, None being that of the evidence, and keep the reduction."""
    R = centred_targets(statistics, target_scale)
    rotated, path = reduced.rotate(R), tuple[float, ...]()
    if alpha is None:
        n = statistics.counts.sum()
        energy = target_scale**2 * float((statistics.counts * (1 - statistics.counts / n)).sum())
        path = evidence_path(reduced, rotated, energy, float(n))
        alpha = GRID[first_minimum(path)]
    if not reduced.is_sound(alpha):
        raise SolveError(used_up(alpha))
    W = reduced.rotate(reduced.solve(alpha, rotated), back=True)
    return replace(_solution(statistics, W, R, alpha, target_scale), path=path, kept=reduced)


def _solution(
    statistics: Statistics, W: Tensor, R: Tensor, alpha: float, target_scale: float
) -> Solution:
    """Return W^T with its intercept and its residual."""
    n, constant = statistics.counts.sum(), statistics.constant
    total = statistics.total
    SW = multiply_symmetric(statistics.A[:-1, :-1], W) - torch.outer(total, total @ W / n)
    residual = float((SW + alpha * W - R).norm() / R.norm().clamp_min(torch.finfo(R.dtype).tiny))
    mean = target_scale * (statistics.counts / n - 1 / len(statistics.counts))
    b = (mean - statistics.mean @ W) / constant
    return Solution(torch.cat([W, b[None]]).T.contiguous(), W.new_zeros(0), residual, alpha)


def evidence_path(S: Reduced, rotated: Tensor, energy: float, n: float) -> tuple[float, ...]:
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
    smallest = sys.float_info.epsilon * energy
    path = []
    for alpha in GRID:
        if not S.is_sound(alpha):  # rounding has used the sums up: never chosen
            path.append(sys.float_info.max)
            continue
        q = max(smallest, energy - float((rotated * S.solve(alpha, rotated)).sum()))
        path.append((n - 1) * math.log(q) + S.log_det(alpha))
    return tuple(path)


def first_minimum(path: Sequence[float]) -> int:
    """Return where a path has its first minimum from its end; of values as good as equal, the last.

    Values are logarithms: near zero they are no more exact than elsewhere.
    """
    i = len(path) - 1
    while i and path[i - 1] < path[i] - _TIE * max(1.0, abs(path[i])):
        i -= 1
    return i
