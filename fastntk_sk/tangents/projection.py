"""The seeded subspace theta = theta0 + Q z of the trainable subset."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..randomness import generator

_CPU = torch.device("cpu")


class Projection:
    r"""A sparse sign matrix Q of shape (p, k) with orthonormal columns, never stored.

    The p coordinates are permuted at random and cut into k groups of equal size g (the last
    ones may be one short); column j of Q holds random signs / sqrt(g) on group j:

    .. math:: (J Q)_j = g^{-1/2} \sum_{i \in \text{group } j} \pm J_i .

    This balanced count sketch (Charikar, Chen and Farach-Colton, 2002) costs p additions a row where a
    dense matrix costs 2 p k operations. It depends on `(p, k, seed)` only. For k = p, Q is the identity.

    It is drawn on the CPU, and works on the device of what it is given, to which it moves once.

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
        self._drawn: dict[torch.device, tuple[Tensor, ...]] = {}
        if k == p:
            return
        draws = generator(seed, "projection")
        # one group after the other, the larger ones first
        order = torch.randperm(p, generator=draws)
        signs = (torch.randint(0, 2, (p,), generator=draws) * 2 - 1).to(dtype)
        sizes = torch.full((k,), p // k)
        sizes[: p % k] += 1
        self._drawn[_CPU] = order, signs, sizes, sizes.cumsum(0) - sizes

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        """Return order and signs of the coordinates, and sizes and starts of the groups, on a device."""
        if device not in self._drawn:
            self._drawn[device] = tuple(tensor.to(device) for tensor in self._drawn[_CPU])
        return self._drawn[device]

    def project(self, rows: Tensor) -> Tensor:
        """Return `rows @ Q` of shape (n, k).

        It is summed term by term in a fixed order and with exact products, so that a row's result is
        bitwise the same at every position of every batch.
        """
        if not self._drawn:
            return rows
        order, signs, sizes, starts = self._on(rows.device)
        # coordinates are the rows of a table of embeddings, groups are bags of them
        sums = torch.nn.functional.embedding_bag(
            order, rows.T.contiguous(), starts, mode="sum", per_sample_weights=signs
        )
        return sums.T / sizes.to(rows.dtype).sqrt()

    def expand(self, z: Tensor) -> Tensor:
        """Return `Q @ z`, the displacement of all p parameters."""
        if not self._drawn:
            return z.clone()
        order, signs, sizes, _ = self._on(z.device)
        by_group = z / sizes.to(z.dtype).sqrt()
        spread = signs.to(z.dtype) * by_group.repeat_interleave(sizes, output_size=self.p)
        return z.new_zeros(self.p).index_copy_(0, order, spread)

    def digest(self) -> str:
        """Return a fingerprint of Q, which is checked when a saved state is loaded."""
        state = hashlib.blake2b(repr((self.p, self.k)).encode(), digest_size=16)
        if self._drawn:
            order, signs, *_ = self._drawn[_CPU]
            state.update(order.numpy().tobytes())
            state.update(signs.to(torch.int8).numpy().tobytes())
        return state.hexdigest()
