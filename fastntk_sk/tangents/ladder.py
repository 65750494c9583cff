r"""The ladder: pooled activations beside every block of a frozen network, read by one linear readout.

A side adapter in the manner of side tuning (arXiv:1912.13503), Head2Toe (arXiv:2201.03529), LayUP
(arXiv:2312.08888) and RanPAC (arXiv:2307.02251). Its model is linear in its parameters: the tangent
kernel is constant, and the linearised model is the model.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import StateMismatchError
from ..randomness import generator
from .jacobians import check_rows_are_independent
from .rungs import Rung, changed_shape, find_rungs, tensors_of
from .taps import shared_copy

TENSORS = ("scales", "order", "signs", "sizes")


@dataclass
class _Pass:
    """What the rungs have given so far in one forward pass."""

    pooled: dict[int, Tensor] = field(default_factory=dict)
    n_seen: Counter[tuple[str, str]] = field(default_factory=Counter)


# a network is shared by threads, and only the context tells a hook whose pass it is
_PASS: ContextVar[_Pass | None] = ContextVar("_PASS", default=None)


class Ladder(nn.Module):
    r"""A frozen network that gives the features of a ladder, in one forward pass.

    With the pooled activations :math:`a_l` of T rungs, of which the last is the network's features h,

    .. math:: q_l = \operatorname{sign}(a_l) \sqrt{|a_l|}, \quad u_l = \sqrt{T \, E \|q_l\|^2}, \quad
              x = S \, [q_1 / u_1, \ldots, q_T / u_T] .

    The mean E is over synthetic inputs, so that a row x has a mean energy near one there; S is a
    balanced count sketch: every number enters one of k sums, with a random sign. None of it depends on
    data. Two sides have half of the sketch each, and h both.

    The network maps a batch to features of shape (n, d), row by row, in eval mode; its parameters are
    shared, never changed. Rungs are found in a `probe` of at least two inputs.

    `widths` are how many numbers each rung pools, h the last, and `scales` of shape (T,) are u: ones
    until `calibrate`. Group by group of the sketch, `order` of shape (m,) has the places among the
    pooled numbers, `signs` their signs, and `sizes` of shape (k,) the sizes of the groups.

    Examples
    --------
    >>> import torch
    >>> from fastntk_sk.tangents.ladder import Ladder
    >>> layers = [torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2), torch.nn.ReLU()]
    >>> ladder = Ladder(torch.nn.Sequential(*layers).eval(), ["ladder-gap"], torch.ones(2, 2))
    >>> ladder.draw_sketch(3, seed=0)
    >>> ladder(torch.ones(5, 2)).shape
    torch.Size([5, 3])
    """

    scales: Tensor
    order: Tensor
    signs: Tensor
    sizes: Tensor
    _gathered: Tensor
    _factors: Tensor

    def __init__(self, net: nn.Module, sides: Sequence[str], probe: Tensor) -> None:
        super().__init__()
        self.net = shared_copy(net)
        self.rungs = find_rungs(self.net, probe, sides)
        self.sides = tuple(dict.fromkeys(rung.side for rung in self.rungs))
        hooked = defaultdict(list)
        for slot, rung in enumerate(self.rungs):
            hooked[rung.path, rung.of].append((slot, rung))
        for (path, of), rungs in hooked.items():
            module, hook = self.net.get_submodule(path), partial(_pool, rungs)
            if of == "output":
                module.register_forward_hook(hook)
            else:
                module.register_forward_pre_hook(hook)
        self._dtype = probe.dtype
        self.widths: list[int] = []
        self.widths = [part.shape[1] for part in self.pooled(probe)]
        check_rows_are_independent(lambda x: torch.cat(self.pooled(x), dim=1), probe, type(net).__name__)
        places = torch.cat(self._places()).int()
        ones = torch.ones_like(places)
        scales = probe.new_ones(len(self.widths))
        self.install({"scales": scales, "order": places, "signs": ones.to(torch.int8), "sizes": ones})

    @property
    def width(self) -> int:
        """Number of features: k, or fewer where there are fewer numbers."""
        return len(self.sizes)

    def pooled(self, x: Tensor) -> list[Tensor]:
        """Return the signed roots of what each rung pools, of shape (n, width), h the last."""
        current = _Pass()
        token = _PASS.set(current)
        try:
            features = self.net(x)
        finally:
            _PASS.reset(token)
        parts = [current.pooled.get(slot) for slot in range(len(self.rungs))]
        parts.append(features)
        widths = [None if part is None else part.shape[1] for part in parts]
        if self.widths and widths != self.widths:
            i = next(i for i, width in enumerate(widths) if width != self.widths[i])
            where = self.rungs[i].path if i < len(self.rungs) else "the last features"
            raise changed_shape(where, f"{self.widths[i]} pooled numbers", widths[i])
        dtype = features.dtype if features.dtype == torch.float64 else torch.float32
        return [self.root(part.to(dtype)) for part in parts if part is not None]

    @staticmethod
    def root(pooled: Tensor) -> Tensor:
        """Return the signed square root."""
        # the sign makes zeros zeros again, whose own root takes much longer and has no derivative;
        # in place, since fresh memory takes as long as the arithmetic
        return pooled.sign().mul_(pooled.abs().clamp_min_(1e-30).sqrt_())

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of a batch, of shape (n, k)."""
        numbers = torch.cat([part.T for part in self.pooled(x)])  # each row of the batch a column
        # one number of every group at a time: all groups at once would not fit the caches. Products and
        # sums are apart, since a kernel for both may round otherwise at the end of a row
        features = numbers.new_zeros(self.width, numbers.shape[1])
        for places, factors in zip(self._gathered, self._factors, strict=True):
            features += numbers.index_select(0, places).mul_(factors)
        return features.T

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set the scales from the mean energy (squared norm) of each rung on synthetic inputs."""
        parts = zip(*(self.pooled(batch) for batch in batches), strict=True)
        pooled = (torch.cat(part).cpu().double() for part in parts)
        energies = torch.stack([part.square().sum(1).mean() for part in pooled])
        scales = (len(energies) * energies).sqrt()
        scales = torch.where(scales > 0, scales, 1.0).to(self.scales)
        self.install(self.tensors() | {"scales": scales})

    def draw_sketch(self, k: int, seed: int) -> None:
        """Draw S for k features, at least one a side, and at most one for each number."""
        columns, draws = self._places(), generator(seed, "sketch")
        orders, sizes = [], []
        for i, places in enumerate(columns):
            k_side = min(len(places), max(1, (k + i) // len(columns)))
            orders.append(places[torch.randperm(len(places), generator=draws)])
            sizes.append(torch.full((k_side,), len(places) // k_side))
            sizes[-1][: len(places) % k_side] += 1
        order = torch.cat(orders).int()
        signs = torch.randint(0, 2, order.shape, generator=draws, dtype=torch.int8) * 2 - 1
        drawn = {"scales": self.scales, "order": order, "signs": signs, "sizes": torch.cat(sizes).int()}
        self.install(drawn)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is published: `scales`, `order`, `signs` and `sizes`."""
        return {name: getattr(self, name).cpu() for name in TENSORS}

    def install(self, tensors: Mapping[str, Tensor]) -> None:
        """Take scales and sketch of `tensors`, or raise StateMismatchError if they do not fit."""
        scales, order, signs, sizes = (tensors[name].cpu() for name in TENSORS)
        n_places, n_numbers = sum(self.widths), sum(map(len, self._places()))
        fits = (
            scales.shape == (len(self.widths),)
            and scales.dtype == self._dtype
            and bool((scales > 0).all() and scales.isfinite().all())
            and order.shape == signs.shape == (n_numbers,)
            and (order.dtype, signs.dtype, sizes.dtype) == (torch.int32, torch.int8, torch.int32)
            and bool(((order >= 0) & (order < n_places)).all() and (signs.abs() == 1).all())
            and sizes.ndim == 1
            and 0 < len(sizes) <= n_numbers
            and bool((sizes > 0).all())
            and int(sizes.long().sum()) == n_numbers
            and len(sizes) * int(sizes.max()) <= 3 * (n_numbers + len(sizes))  # of k = 3 in two sides
        )
        if not fits:
            raise StateMismatchError(
                f"Expected the sketch of a ladder of {len(self.widths)} rungs and {n_places} numbers, "
                "got that of another one. Load with the backbone that was saved: backbone=..."
            )
        # groups as columns of a table; those that are shorter than the longest are filled up with zeros
        places = torch.arange(int(sizes.max()))[:, None]
        inside = places < sizes
        at = torch.where(inside, sizes.cumsum(0) - sizes + places, 0)
        device = next(iter(self.net.parameters()), scales).device
        for name, tensor in zip(TENSORS, (scales, order, signs, sizes), strict=True):
            self.register_buffer(name, tensor.to(device))
        gathered = order.long()[at]
        divisors = scales.repeat_interleave(torch.tensor(self.widths))[gathered]
        factors = (torch.where(inside, signs[at], 0) / divisors)[:, :, None]
        self.register_buffer("_gathered", gathered.to(device), persistent=False)
        self.register_buffer("_factors", factors.to(device), persistent=False)

    def digest(self) -> str:
        """Return a fingerprint of rungs, scales and sketch."""
        state = hashlib.blake2b(repr([astuple(rung) for rung in self.rungs]).encode(), digest_size=16)
        for tensor in self.tensors().values():
            state.update(tensor.contiguous().numpy().tobytes())
        return state.hexdigest()

    def _places(self) -> list[Tensor]:
        """Return where the numbers of each side stand among all that are pooled."""
        *of_rungs, of_features = torch.arange(sum(self.widths)).split(self.widths)
        return [
            torch.cat(
                [*(p for p, r in zip(of_rungs, self.rungs, strict=True) if r.side == side), of_features]
            )
            for side in self.sides
        ]


def _pool(rungs: list[tuple[int, Rung]], module: nn.Module, given: Any, out: Any = None) -> None:
    """Pool the tensors of one module that are rungs: a hook on what it takes, or on what it gives."""
    current, (_, first) = _PASS.get(), rungs[0]
    if current is None:
        return
    name = (first.path, first.of)
    for tensor in tensors_of(given if first.of == "input" else out):
        for slot, rung in rungs:
            if rung.index == current.n_seen[name]:
                current.pooled[slot] = rung.pool(tensor)
        current.n_seen[name] += 1
