r"""What leaving rows out does to ridge regression on features that all classes share, in closed form.

With rows :math:`x_i` of weight :math:`w_i`, :math:`M = \sum_i w_i x_i x_i^T + \alpha D` (D is the
identity, but zero at an intercept without ridge), :math:`H_{ij} = x_i^T M^{-1} x_j` and errors
e = t - f, a model that never learned a group g of rows has there the errors, and changes elsewhere by

.. math::

    e'_g = (I - H_{gg} \Omega_g)^{-1} e_g, \quad
    f(x) - f'(x) = \sum_{i \in g} x^T M^{-1} x_i \, w_i \, e_i', \quad \Omega = \operatorname{diag}(w).

For one row it is :math:`e_i' = e_i / (1 - w_i H_{ii})`, with the intercept
:math:`H_{ii} = (x_i - \bar x)^T (S + \alpha I)^{-1} (x_i - \bar x) + 1 / \sum w` (Cook and Weisberg,
Residuals and Influence in Regression, 1982). All of it is at one alpha.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ridge import solve
from .statistics import Statistics


class LeaveOut:
    """The solution of some sums, and what it would be without some of their rows.

    Parameters
    ----------
    statistics : Statistics
        Without class blocks (k = 0).

    alpha, tangent_scale, target_scale : float
        As in :func:`fastntk_sk.sums.ridge.solve`; alpha is a number.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.sums.influence import LeaveOut
    >>> from fastntk_sk.sums.statistics import Statistics
    >>> learned = Statistics.zeros(1, 0, 2)
    >>> x, y = torch.tensor([[3.0, 1.0], [5.0, 1.0], [6.0, 1.0]]), torch.tensor([0, 1, 1])
    >>> learned.add(x, torch.zeros(3, 2, 0), y, torch.ones(3))
    >>> model = LeaveOut(learned, alpha=2.0, tangent_scale=1.0, target_scale=1.0)
    >>> rows = model.whiten(x)
    >>> errors = model.targets(y) - model.scores(x)
    >>> without = model.errors_without(rows, errors, torch.ones(3), torch.ones(3, dtype=torch.long))
    >>> (model.targets(y) - without)[2]  # what rows 0 and 1 alone, with W = -1/4 and b = 1, say of row 2
    tensor([-0.5000,  0.5000], dtype=torch.float64)
    """

    def __init__(
        self, statistics: Statistics, *, alpha: float, tangent_scale: float, target_scale: float
    ) -> None:
        found = solve(statistics, alpha=alpha, tangent_scale=tangent_scale, target_scale=target_scale)
        assert isinstance(found.kept, Tensor)
        self._W, self._factor = found.W, found.kept
        self._target_scale = target_scale
        n_columns = len(statistics.A)
        if statistics.has_tangents:  # the intercept has a ridge, as all columns
            self._centre = torch.zeros(n_columns, dtype=torch.float64)
            self._scale = statistics.tangent_factors(tangent_scale)
            self._intercept = 0.0
        else:
            self._centre = statistics.mean
            self._scale = torch.ones(n_columns - 1, 1, dtype=torch.float64)
            self._intercept = 1 / float(statistics.counts.sum())

    def whiten(self, h: Tensor) -> Tensor:
        """Return U of shape (n, k) for augmented features (n, d + 1); see `products`."""
        centred = (h[:, : len(self._centre)].double() - self._centre).T * self._scale
        return torch.linalg.solve_triangular(self._factor, centred, upper=False).T

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """Return H (..., m, n) between whitened rows of shapes (..., m, k) and (..., n, k)."""
        return left @ right.mT + self._intercept

    def scores(self, h: Tensor) -> Tensor:
        """Return the float64 scores (n, C) of augmented features (n, d + 1)."""
        return h.double() @ self._W.T

    def targets(self, labels: Tensor) -> Tensor:
        """Return the targets (n, C) of class indices."""
        n_classes = len(self._W)
        onehot = torch.nn.functional.one_hot(labels, n_classes).double()
        return self._target_scale * (onehot - 1 / n_classes)

    def errors_without(self, rows: Tensor, errors: Tensor, weights: Tensor, sizes: Tensor) -> Tensor:
        """Return e' (n, C): the error of each row under the model that never learned its group.

        Parameters
        ----------
        rows : Tensor of shape (n, k)
            Learned rows, whitened, those of a group one after another.

        errors : Tensor of shape (n, C)
            Targets less scores.

        weights : Tensor of shape (n,)

        sizes : Tensor of shape (n_groups,)
            Number of rows of each group; their sum is n.
        """
        without, starts = torch.empty_like(errors), sizes.cumsum(0) - sizes
        for size in sizes.unique().tolist():
            places = starts[sizes == size, None] + torch.arange(size)
            held = rows[places]
            away = (
                torch.eye(size, dtype=rows.dtype) - self.products(held, held) * weights[places][:, None]
            )
            without[places] = torch.linalg.solve(away, errors[places])
        return without
