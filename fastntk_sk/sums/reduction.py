"""A symmetric matrix in a basis in which one reduction serves every alpha."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal, lapack, solveh_banded
from torch import Tensor


class Reduced(ABC):
    """S = Q T Q^T of shape (k, k), with a T that is solved with in O(k) operations a column."""

    @abstractmethod
    def rotate(self, right: Tensor, *, back: bool = False) -> Tensor:
        """Return Q^T right, or Q right, of shape (k, m)."""

    @abstractmethod
    def solve(self, alpha: float, rotated: Tensor) -> Tensor:
        """Return (T + alpha I)^-1 rotated."""

    @abstractmethod
    def is_sound(self, alpha: float) -> bool:
        """Return whether the smallest eigenvalue is at least -alpha / 2."""

    @abstractmethod
    def log_det(self, alpha: float) -> float:
        """Return the logarithm of the determinant of I + S / alpha."""


class _WithEigenvalues(Reduced):
    eigenvalues: Tensor  # ascending

    def is_sound(self, alpha: float) -> bool:
        return bool(self.eigenvalues[0] >= -alpha / 2)

    def log_det(self, alpha: float) -> float:
        return float((self.eigenvalues.clamp_min(0) / alpha).log1p().sum())


class Tridiagonal(_WithEigenvalues):
    """T is tridiagonal, which on a CPU takes half of the time of the eigenvectors.

    `lower` is float64 of shape (k, k), of which the lower triangle is read.
    """

    def __init__(self, lower: Tensor) -> None:
        work, _ = lapack.dsytrd_lwork(len(lower), lower=1)
        a = np.array(lower.numpy(), order="F")
        reflectors, diagonal, off, self._tau, _ = lapack.dsytrd(
            a, lower=1, lwork=int(work), overwrite_a=1
        )
        self._reflectors = np.asfortranarray(reflectors[1:, :-1])
        self._bands = np.vstack([np.r_[0.0, off], diagonal])
        self.eigenvalues = torch.from_numpy(eigvalsh_tridiagonal(diagonal, off))

    def rotate(self, right: Tensor, *, back: bool = False) -> Tensor:
        """Return Q^T right, or Q right, of shape (k, m)."""
        out = np.array(right.numpy(), order="F")
        if len(out) > 1:
            transposed, work = "N" if back else "T", 64 * out.shape[1]
            lower = np.asfortranarray(out[1:])
            out[1:] = lapack.dormqr("L", transposed, self._reflectors, self._tau, lower, work)[0]
        return torch.from_numpy(out)

    def solve(self, alpha: float, rotated: Tensor) -> Tensor:
        """Return (T + alpha I)^-1 rotated."""
        bands = self._bands.copy()
        bands[1] += alpha
        if len(rotated) == 1:
            return rotated / float(bands[1, 0])
        return torch.from_numpy(solveh_banded(bands, rotated.numpy()))


class Spectral(_WithEigenvalues):
    """T is diagonal: by eigenvectors, for devices that have no other reduction.

    `lower` is as for `Tridiagonal`.
    """

    def __init__(self, lower: Tensor) -> None:
        self.eigenvalues, self._vectors = torch.linalg.eigh(lower)

    def rotate(self, right: Tensor, *, back: bool = False) -> Tensor:
        """Return Q^T right, or Q right, of shape (k, m)."""
        return (self._vectors if back else self._vectors.T) @ right

    def solve(self, alpha: float, rotated: Tensor) -> Tensor:
        """Return (T + alpha I)^-1 rotated."""
        return rotated / (self.eigenvalues[:, None] + alpha)


def reduce_symmetric(lower: Tensor) -> Reduced:
    """Return the reduction that is fastest where the matrix lies; its lower triangle is read."""
    return Tridiagonal(lower) if lower.device.type == "cpu" else Spectral(lower)
