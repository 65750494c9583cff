"""The seeded subspace theta = theta0 + Q z of the trainable subset."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..randomness import generator


class Projection:
    r"""A sparse sign matrix Q of shape (p, k) with orthonormal columns, never stored.

    The p coordinates are permuted at random and cut into k groups of equal size g (the last
    ones may be one short); column j of Q holds random signs / sqrt(g) on group j:

    .. math:: (J Q)_j = g^{-1/2} \sum_{i \in \text{group } j} \pm J_i .

    This balanced count sketch (Charikar, Chen and Farach-Colton, 2002) costs p additions a row where a
    dense matrix costs 2 p k operations. It depends on `(p, k, seed)` only. For k = p, Q is the identity.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.tangents.projection import Projection
    >>> Q = Projection(p=6, k=3, seed=0)
    >>> dense = Q.project(torch.eye(6, dtype=torch.float64))
    >>> bool(torch.allclose(dense.T @ dense, torch.eye(3, dtype=torch.float64)))
    True
    """

    def __init__(self, p: int, k: int, seed: int, dtype: torch.dtype = torch.float64) -> None:
        self.p, self.k = p, k
        self._order: Tensor | None = None
        if k == p:
            return
        draws = generator(seed, "projection")
        # one group after the other, the larger ones first
        self._order = torch.randperm(p, generator=draws)
        self._signs = (torch.randint(0, 2, (p,), generator=draws) * 2 - 1).to(dtype)
        self._sizes = torch.full((k,), p // k)
        self._sizes[: p % k] += 1
        self._starts = self._sizes.cumsum(0) - self._sizes

    def project(self, rows: Tensor) -> Tensor:
        """Return `rows @ Q` of shape (n, k).

        It is summed term by term in a fixed order and with exact products, so that a row's result is
        bitwise the same at every position of every batch.
        """
        if self._order is None:
            return rows
        # coordinates are the rows of a table of embeddings, groups are bags of them
        sums = torch.nn.functional.embedding_bag(
            self._order, rows.T.contiguous(), self._starts, mode="sum", per_sample_weights=self._signs
        )
        return sums.T / self._sizes.to(rows.dtype).sqrt()

    def expand(self, z: Tensor) -> Tensor:
        """Return `Q @ z`, the displacement of all p parameters."""
        if self._order is None:
            return z.clone()
        spread = self._signs.to(z.dtype) * (z / self._sizes.to(z.dtype).sqrt()).repeat_interleave(
            self._sizes
        )
        return torch.zeros(self.p, dtype=z.dtype).index_copy_(0, self._order, spread)

    def digest(self) -> str:
        """Return a fingerprint of Q, which is checked when a saved state is loaded."""
        state = hashlib.blake2b(repr((self.p, self.k)).encode(), digest_size=16)
        if self._order is not None:
            state.update(self._order.numpy().tobytes())
            state.update(self._signs.to(torch.int8).numpy().tobytes())
        return state.hexdigest()
