r"""Factorisations of sums that some rows have left, from those that were there before.

A symmetric matrix loses :math:`U U^T`, with a column of U of shape (k, m) for each row that goes: at a
cost of O(k^2 m) where a new factorisation takes O(k^3). Nothing here is certain by itself, since
subtractions cancel: whoever solves with it has to look at the residual.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .reduction import Reduced
from .statistics import Statistics, zero_matrix

_BLOCK = 64


def downdate(L: Tensor, U: Tensor) -> Tensor | None:
    r"""Return the lower Cholesky factor of :math:`L L^T - U U^T`, or None where there is none.

    `L` has shape (k, k) and U (k, m), both float64. With the panels :math:`L_{jj}` on the diagonal and
    :math:`L_{ij}` below them, and :math:`P = L_{jj}^{-1} U_j`, the hyperbolic rotation of a panel is

    .. math::

        C C^T = I - P P^T, \quad E E^T = I - P^T P, \quad
        L_{jj} \leftarrow L_{jj} C, \quad
        L_{ij} \leftarrow (L_{ij} - U_i P^T) C^{-T}, \quad
        U_i \leftarrow (U_i - L_{ij} P) E^{-T}

    (Bojanczyk, Brent, Van Dooren and de Hoog, SIAM J. Sci. Stat. Comput. 8(3), 1987).

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.sums.downdate import downdate
    >>> L, U = torch.tensor([[5.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0], [0.0]])
    >>> downdate(L.double(), U.double())
    tensor([[4., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    # by rows of the transposes, as LAPACK returns L and BLAS is fast
    Lt, Ut = L.T, U.T.clone(memory_format=torch.contiguous_format)
    out = zero_matrix(len(L), L.device)
    eye = torch.eye(max(_BLOCK, len(Ut)), dtype=L.dtype, device=L.device)
    for start in range(0, len(L), _BLOCK):
        here, below = slice(start, start + _BLOCK), slice(start + _BLOCK, None)
        diagonal = Lt[here, here].triu()
        P = torch.linalg.solve_triangular(diagonal, Ut[:, here], upper=True, left=False).T
        n, m = P.shape
        C, no_C = torch.linalg.cholesky_ex(eye[:n, :n] - P @ P.T)
        E, no_E = torch.linalg.cholesky_ex(eye[:m, :m] - P.T @ P)
        if no_C or no_E:
            return None
        out[here, here] = C.T @ diagonal
        beside, rest = Lt[here, below], Ut[:, below]
        inverse = torch.linalg.solve_triangular(C, eye[:n, :n], upper=False)
        torch.mm(inverse, torch.addmm(beside, P, rest, alpha=-1), out=out[here, below])
        inverse = torch.linalg.solve_triangular(E, eye[:m, :m], upper=False)
        Ut[:, below] = inverse @ torch.addmm(rest, P.T, beside, alpha=-1)
    return out.T


def columns_of_rows(mean: Tensor, rest: Statistics, h: Tensor, weights: Tensor) -> Tensor:
    r"""Return U of shape (d, n + 1): what `centred` sums lose with n rows is :math:`U U^T`.

    With the weighted mean of the rows before, and the total weight n' of those that are left,

    .. math::

        S - S' = \sum_{i=1}^n w_i (x_i - \bar x)(x_i - \bar x)^T + v v^T / n', \quad
        v = \sum_{i=1}^n w_i (x_i - \bar x) .

    `h` of shape (n, d + 1) are the augmented features of the rows that have left.
    """
    away = h[:, :-1] - mean
    moved = (weights @ away) / rest.counts.sum().sqrt()
    return torch.cat([away * weights.sqrt()[:, None], moved[None]]).T


class Lessened(Reduced):
    r"""What is left of a reduced matrix without :math:`U U^T`, by Woodbury's identity in its basis.

    With :math:`V = Q^T U`, at every alpha,

    .. math::

        K = I - V^T (T + \alpha I)^{-1} V, \quad
        (T - V V^T + \alpha I)^{-1} = (T + \alpha I)^{-1}
            + (T + \alpha I)^{-1} V K^{-1} V^T (T + \alpha I)^{-1} .

    Its basis is that of the matrix before: whoever keeps it keeps what has left.
    """

    def __init__(self, whole: Reduced, U: Tensor) -> None:
        self._whole, self._V = whole, whole.rotate(U)
        self._at = lru_cache(maxsize=1)(self._taken)  # a solve and the determinant are of one alpha

    def rotate(self, right: Tensor, *, back: bool = False) -> Tensor:
        """Return Q^T right, or Q right, of shape (k, m)."""
        return self._whole.rotate(right, back=back)

    def solve(self, alpha: float, rotated: Tensor) -> Tensor:
        """Return (T - V V^T + alpha I)^-1 rotated."""
        found, (along, K) = self._whole.solve(alpha, rotated), self._at(alpha)
        return found + along @ torch.linalg.solve(K, self._V.T @ found)

    def is_sound(self, alpha: float) -> bool:
        """Return whether the smallest eigenvalue is at least -alpha / 2."""
        return self._whole.is_sound(alpha) and not torch.linalg.cholesky_ex(self._at(alpha / 2)[1])[1]

    def log_det(self, alpha: float) -> float:
        """Return the logarithm of the determinant of I + (T - V V^T) / alpha."""
        return self._whole.log_det(alpha) + float(torch.linalg.slogdet(self._at(alpha)[1])[1])

    def _taken(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Return (T + alpha I)^-1 V and K."""
        along = self._whole.solve(alpha, self._V)
        K = -(self._V.T @ along)
        K.diagonal().add_(1)
        return along, K
