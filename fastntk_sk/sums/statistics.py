"""Additive sufficient statistics of the linearised model: what is left of the training data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

_BLOCK = 128  # rows of a symmetric matrix that are worked on together
_FIELDS = ("A", "B", "G", "H", "r")
_WITHOUT_FLOAT64 = ("mps", "xpu")  # no device of the first kind has it, and some of the second lack it


@dataclass(eq=False)
class Statistics:
    r"""Weighted float64 sums over the learned rows; rows are added, and subtracted up to rounding.

    With augmented features :math:`\tilde h` in R^{d+1} (the last entry is constant) and tangent
    features J_c in R^k for each class c, both in the backbone's energy units:

    .. math::

        A = \sum w \tilde h \tilde h^T, \quad B_c = \sum w \tilde h J_c^T, \quad
        G = \sum_c \sum w J_c^T J_c, \quad H = \sum w \tilde h \, onehot(y)^T, \quad
        r = \sum w J_{y} .

    They hold neither alpha nor tangent_scale nor target_scale, so that one pass serves every solve.
    Of A and G only the lower triangle is kept up to date. Precedents of the downdate:
    arXiv:2603.12977, arXiv:2604.13438.

    `constant` is the last entry of every augmented feature row, and `n_tangents` of the features, the
    last ones, are tangent features that all classes share (the pseudo kernel).

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.sums.statistics import Statistics
    >>> h = torch.cat([torch.randn(5, 2), torch.ones(5, 1)], dim=1)
    >>> J, y = torch.randn(5, 2, 4), torch.tensor([0, 1, 0, 1, 1])
    >>> learned = Statistics.zeros(2, 4, 2)
    >>> learned.add(h, J, y, torch.ones(5))
    >>> learned.add(h[3:], J[3:], y[3:], -torch.ones(2))
    >>> learned.counts.tolist()
    [2.0, 1.0]
    """

    A: Tensor
    B: Tensor
    G: Tensor
    H: Tensor
    r: Tensor
    constant: float = 1.0
    n_tangents: int = 0

    @classmethod
    def zeros(
        cls,
        d: int,
        k: int,
        n_classes: int,
        constant: float = 1.0,
        n_tangents: int = 0,
        device: torch.device | str = "cpu",
    ) -> Statistics:
        """Return the sums over no rows: of d features, k tangent components and some classes."""
        shapes = (d + 1, d + 1), (n_classes, d + 1, k), (k, k), (d + 1, n_classes), (k,)
        empty = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes)
        sums = dict(zip(_FIELDS, empty, strict=True))
        return cls(**sums, constant=constant, n_tangents=n_tangents)

    @staticmethod
    def n_bytes(d: int, k: int, n_classes: int) -> int:
        """Return the bytes that one set of statistics takes."""
        return 8 * ((d + 1) ** 2 + n_classes * (d + 1) * (k + 1) + k * k + k)

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self.A.device

    @property
    def has_tangents(self) -> bool:
        """Whether there are any, of classes or shared ones."""
        return bool(len(self.r) or self.n_tangents)

    @property
    def counts(self) -> Tensor:
        """Total weight of each class, of shape (n_classes,)."""
        return self.H[-1] / self.constant

    @property
    def total(self) -> Tensor:
        """Weighted sum of the features, without the constant, of shape (d,)."""
        return self.A[-1, :-1] / self.constant

    @property
    def mean(self) -> Tensor:
        """Weighted mean of the features, without the constant, of shape (d,)."""
        return self.total / self.counts.sum()

    def tangent_factors(self, tangent_scale: float) -> Tensor:
        r"""Return what multiplies columns in a solve: :math:`\sqrt{s}` for shared tangent features.

        Float64 of shape (d + 1, 1); they stand before the constant.
        """
        factors = self.A.new_ones(len(self.A), 1)
        factors[len(factors) - 1 - self.n_tangents : -1] = tangent_scale**0.5
        return factors

    @property
    def energy(self) -> float:
        r"""Energy of the rows in the sums, :math:`\sum w (\|\tilde h\|^2 + \sum_c \|J_c\|^2)`."""
        return float(self.A.trace() + self.G.trace())

    def add(self, h: Tensor, J: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Add rows of shapes (n, d + 1) and (n, n_classes, k); negative weights subtract them."""
        h, J, weights = h.double(), J.double(), weights.double()
        n_classes = self.H.shape[1]
        onehot = torch.nn.functional.one_hot(labels, n_classes).double()
        self.H += ((onehot * weights[:, None]).T @ h).T
        # rows of one weight, as most are, need no copy that is multiplied by it
        same = bool((weights == weights[:1]).all())
        sign = float(weights[:1].sum()) if same else 1.0
        weighted = h if same else h * weights[:, None]
        add_gram(self.A, weighted, h, sign)
        if not len(self.r):
            return
        for c in range(n_classes):
            self.B[c].addmm_(weighted.T, J[:, c], alpha=sign)
        flat = J.reshape(-1, J.shape[-1])
        weighted = flat if same else flat * weights.repeat_interleave(n_classes)[:, None]
        add_gram(self.G, weighted, flat, sign)
        self.r += weights @ J[torch.arange(len(J), device=J.device), labels]

    def merge(self, other: Statistics) -> None:
        """Add the sums of another set of rows, of the same sizes."""
        for name in _FIELDS:
            getattr(self, name).add_(getattr(other, name))

    def subtract_from(self, total: Statistics) -> Statistics:
        """Become `total` less these sums, in place."""
        for name in _FIELDS:
            getattr(self, name).neg_().add_(getattr(total, name))
        return self

    def clear_targets(self, class_rows: Sequence[int]) -> None:
        """Make the targets of classes without rows zero, of which subtractions leave their rounding."""
        for c, n_rows in enumerate(class_rows):
            if not n_rows:
                self.H[:, c] = 0

    def with_classes(self, places: Sequence[int], n_classes: int) -> Statistics:
        """Return statistics of more classes; class c of these stands at `places[c]` among them.

        Classes must have no blocks of their own (k = 0). What does not depend on classes is shared.
        """
        H = self.H.new_zeros(len(self.H), n_classes)
        H[:, places] = self.H
        return replace(self, B=self.B.new_zeros(n_classes, *self.B.shape[1:]), H=H)

    def copy(self) -> Statistics:
        """Return an independent copy."""
        B, H, r = self.B.clone(), self.H.clone(), self.r.clone()
        return replace(self, A=_copied(self.A), B=B, G=_copied(self.G), H=H, r=r)

    def to(self, device: torch.device | str) -> Statistics:
        """Return the sums on a device; those that are there are shared."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return Statistics(**moved, constant=self.constant, n_tangents=self.n_tangents)

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by name."""
        return {name: getattr(self, name) for name in _FIELDS}


class HeldRows:
    """Rows that leave sums, in place of their own sums: few of them are less than a matrix.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.sums.statistics import HeldRows, Statistics
    >>> rows = torch.ones(3, 2), torch.zeros(3, 2, 0), torch.tensor([0, 1, 1]), torch.ones(3)
    >>> learned, leaving = Statistics.zeros(1, 0, 2), HeldRows(torch.device("cpu"))
    >>> learned.add(*rows)
    >>> leaving.add(*(part[1:] for part in rows))
    >>> leaving.subtract_from(learned).counts.tolist()
    [1.0, 0.0]
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._blocks: list[tuple[Tensor, ...]] = []

    def add(self, h: Tensor, J: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Hold rows, as `Statistics.add` takes them; kept features come from elsewhere."""
        self._blocks.append(tuple(part.to(self.device) for part in (h, J, labels, weights)))

    def merge(self, other: HeldRows) -> None:
        """Hold other rows too."""
        for block in other._blocks:
            self.add(*block)

    def subtract_from(self, total: Statistics) -> Statistics:
        """Return `total` without the rows, where these are."""
        there = total.to(self.device)
        rest = there.copy() if there.device == total.device else there
        for h, J, labels, weights in self._blocks:
            rest.add(h, J, labels, -weights)
        return rest

    @property
    def shared(self) -> tuple[Tensor, Tensor]:
        """Augmented features (n, d + 1) and weights (n,) of the rows, both float64."""
        h, _, _, weights = (torch.cat(parts) for parts in zip(*self._blocks, strict=True))
        return h.double(), weights.double()


def place_of_sums(device: torch.device) -> torch.device:
    """Return where the rows of a device are summed: there, or on the CPU if it may lack float64.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.sums.statistics import place_of_sums
    >>> place_of_sums(torch.device("cuda:1")), place_of_sums(torch.device("mps"))
    (device(type='cuda', index=1), device(type='cpu'))
    """
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def add_gram(out: Tensor, left: Tensor, right: Tensor, sign: float = 1.0, block: int = 128) -> None:
    """Add `sign * left.T @ right`, known to be symmetric, to the lower triangle of `out`.

    `out` has shape (k, k), the others (n, k). Halves, down to `block` columns, take little more than
    half of the operations of the full product, and most of them in large products; within the
    diagonal blocks, entries above the diagonal are changed too.
    """
    if len(out) <= block:
        out.addmm_(left.T, right, alpha=sign)
        return
    half = len(out) // 2
    add_gram(out[:half, :half], left[:, :half], right[:, :half], sign, block)
    out[half:, :half].addmm_(left[:, half:].T, right[:, :half], alpha=sign)
    add_gram(out[half:, half:], left[:, half:], right[:, half:], sign, block)


def multiply_symmetric(lower: Tensor, right: Tensor) -> Tensor:
    """Return the product of a symmetric matrix, as `add_gram` leaves it, and `right` of shape (k, m)."""
    out = torch.zeros_like(right)
    for start in range(0, len(lower), _BLOCK):
        here = slice(start, start + _BLOCK)
        beside, diagonal = lower[here, :start], lower[here, here].tril()
        whole = diagonal + diagonal.tril(-1).T
        out[here].addmm_(beside, right[:start]).addmm_(whole, right[here])
        out[:start].addmm_(beside.T, right[here])
    return out


def zero_matrix(n: int, device: torch.device) -> Tensor:
    """Return float64 zeros of shape (n, n)."""
    if device.type != "cpu":
        return torch.zeros(n, n, dtype=torch.float64, device=device)
    # numpy asks Linux for huge pages, which halves the time that the first touch of fresh memory takes
    return torch.from_numpy(np.zeros((n, n)))


def _copied(lower: Tensor) -> Tensor:
    """Return a copy of a symmetric matrix as `add_gram` leaves it."""
    out = zero_matrix(len(lower), lower.device)
    for start in range(0, len(lower), _BLOCK):
        stop = start + _BLOCK
        out[start:stop, :stop] = lower[start:stop, :stop]
    return out
