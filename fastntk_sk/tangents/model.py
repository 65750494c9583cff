"""The linearised model: a frozen backbone, its tangent features, and predictions from parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.inputs import sent
from ..backbones.loading import Backbone
from ..exceptions import JacobianError
from ..settings import Settings
from ..sums.memory import block_sizes, memory_needed, rows_at_once
from ..sums.statistics import Statistics
from .jacobians import TangentNetwork
from .ladder import Ladder
from .lora import LORA_A
from .mirror import averaged
from .projection import Projection
from .taps import shared_copy
from .threads import exact_kernels, kept_heap, passing, settled_threads

_PROBED_ROWS, _PROBED_DIRECTIONS = 4, 10
_LIKELY = 16  # rows in whose batches convolutions of small maps round as in one of 32 more often
TELLING = 256  # different numbers of a probe: fewer may agree by chance where kernels differ


@dataclass(frozen=True)
class Parameters:
    """What predicts, in the precision of the backbone's passes; this is what is published.

    W of shape (C, d + 1) reads [features, 1], and delta of shape (p,) displaces the trainable
    parameters from the anchor. For the pseudo kernel W of shape (C, d + r k + 1) reads the tangent
    features too, and delta is empty. `network` is the displaced network, where it predicts.
    """

    W: Tensor
    delta: Tensor
    network: nn.Module | None = field(default=None, repr=False, compare=False)


@dataclass
class LinearizedModel:
    r"""Everything that is fixed before the first row enters the statistics.

    With kernel="full", one displacement of the trainable parameters is shared by all classes,

    .. math:: f(x) = W \tilde h(x) + \sqrt{s} J(x) Q z, \quad
              J(x) = \partial_\theta [V h(x; \theta)]_{\theta_0} .

    With kernel="pseudo", r fixed random directions u_j take the place of V, and every class reads the
    tangent features by itself, at a cost that does not grow with the number of classes:

    .. math:: f(x) = W [h(x), \sqrt{s} \phi(x), 1], \quad
              \phi(x) = r^{-1/2} [Q^T J_h(x)^T u_1; \ldots; Q^T J_h(x)^T u_r], \quad
              J_h = \partial_\theta h .

    With augment="flip" h and its Jacobian are means over a picture and its mirror image, everywhere.

    Any number of threads may predict and learn with it at once.

    The probe directions V of shape (C, d), or (r, d) for the pseudo kernel, are N(0, 1/d) at the
    pretrained anchor, seeded for each row by its index, never a function of the data, and without rows
    where no parameter is displaced; at a fine-tuned one they are what SGD learned, and `moved` of shape
    (k,) is how far it went within span(Q). Of a network that the user trained they are its classifier,
    and `moved` is zero: its values stand in for the pretrained ones. W reads the features of `ladder` in
    place of h where there is one; V still reads h.

    `scale_h` and `scale_J` are powers of two that bring the mean energy (squared norm of a row) of
    augmented features and of projected Jacobians near 1 on synthetic inputs, `position_gap` is the
    relative change of their Jacobians when they change places in their batch, 0 where it is within
    float64 rounding. `origin` is what is known of "base_model" and "revision" of the weights.
    """

    backbone: Backbone
    tangent: TangentNetwork
    projection: Projection
    directions: Tensor
    settings: Settings
    origin: dict[str, str | None]
    scale_h: float
    scale_J: float
    position_gap: float
    moved: Tensor | None = None
    ladder: Ladder | None = None

    @property
    def device(self) -> torch.device:
        """Device of the passes."""
        return self.directions.device

    @property
    def row_dtype(self) -> np.dtype:
        """Dtype of the rows of the linear problem, as arrays."""
        return torch.empty(0, dtype=self.directions.dtype).numpy().dtype

    @property
    def d(self) -> int:
        """Number of features that W reads: the network's, or the ladder's."""
        return self.directions.shape[1] if self.ladder is None else self.ladder.width

    @property
    def sizes(self) -> tuple[int, int]:
        """Columns that all classes share (without the constant), and those of each class's own block."""
        return block_sizes(self.settings.kernel, self.d, self.projection.k, len(self.directions))

    @property
    def column_scales(self) -> Tensor:
        """What the columns of the shared block are divided by, of shape (width + 1,)."""
        scales = torch.full((self.sizes[0] + 1,), self.scale_h, dtype=self.directions.dtype)
        scales[self.d : -1] = self.scale_J
        return scales

    def centre(self) -> Tensor | None:
        r"""Return where the ridge on z is centred: the pretrained values, as seen from the anchor.

        Float64 of shape (k,), :math:`-c_J z^* / \sqrt{s}` for an anchor at theta_0 + Q z*; None is zero.
        """
        s = self.settings.tangent_scale
        if self.moved is None or not s:
            return None
        return self.moved.double() * (-self.scale_J / math.sqrt(s))

    @property
    def n_displaced(self) -> int:
        """How many parameters a solution displaces: p, or none with the pseudo kernel."""
        return self.projection.p if self.settings.kernel == "full" else 0

    def displacement(self, parameters: Parameters) -> Tensor:
        """Return theta - theta_0 of shape (n_displaced,), what SGD displaced included."""
        if self.moved is None:
            return parameters.delta
        return parameters.delta + self.projection.expand(self.moved).to(parameters.delta.dtype)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the network that its source does not give; see `own_names`."""
        tensors = self.backbone.net.state_dict()
        tuned = () if self.moved is None else self.tangent.subset.names
        return {name: tensors[name] for name in own_names(self.backbone, tuned)}

    def parameters(self, W: Tensor, delta: Tensor) -> Parameters:
        """Return parameters that are ready to predict as the settings say, from any thread."""
        with_network = self.settings.predict_with == "network"
        return Parameters(W, delta, self.displaced_copy(delta, shared=True) if with_network else None)

    def displaced_copy(self, delta: Tensor, *, shared: bool = False) -> nn.Module:
        """Return a copy of the network with the subset displaced from the anchor.

        `shared`: frozen tensors are the network's own, which nobody may change then.
        """
        net = self.backbone.net
        copied = shared_copy(net, self.tangent.subset.names) if shared else copy.deepcopy(net)
        copied.load_state_dict(self.displaced(delta), strict=False)
        return copied

    def displaced(self, delta: Tensor) -> dict[str, Tensor]:
        """Return the values of the subset, displaced from the anchor, by name."""
        net = self.backbone.net
        parts = self.tangent.subset.split(delta.to(self.directions))
        return {name: net.get_parameter(name).detach() + part for name, part in parts.items()}

    def memory_needed(self) -> int:
        """Estimate the peak bytes of a deletion."""
        batch_bytes = self.settings.batch_size * self.projection.p * self.directions.itemsize
        return memory_needed(*self.sizes, self.settings.n_classes, batch_bytes, self.settings.batch_size)

    def empty_statistics(self, device: torch.device | str = "cpu") -> Statistics:
        """Return zero sums of the right size."""
        n_classes, n_tangents = self.settings.n_classes, self.sizes[0] - self.d
        return Statistics.zeros(*self.sizes, n_classes, 1 / self.scale_h, n_tangents, device)

    def passes(self, batch: Tensor, *, full_precision: bool = False) -> tuple[Tensor, Tensor]:
        """Return features (n, d) and projected Jacobians (n, rows of V, k), not scaled.

        The batch is padded to `batch_size` meanwhile, so that a row's result does not depend on the
        request that it comes in. `full_precision` goes without autocast.
        """
        n = len(batch)
        if n < self.settings.batch_size:
            batch = torch.cat([batch, batch[:1].expand(self.settings.batch_size - n, *batch.shape[1:])])
            if batch.ndim == 4:
                batch = batch.contiguous(memory_format=torch.channels_last)
        low = self.settings.precision == "bfloat16" and not full_precision
        with torch.autocast(batch.device.type, torch.bfloat16) if low else nullcontext():
            h, J = self._passes(batch)
            if self.settings.augment == "flip":
                mirrored_h, mirrored_J = self._passes(batch.flip(-1))
                h, J = (h + mirrored_h) / 2, (J + mirrored_J) / 2
        return h[:n], J[:n]

    def _passes(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        if self.tangent.subset.names or self.ladder is None:
            project = lambda rows: self.projection.project(rows.to(self.directions.dtype))  # noqa: E731
            h, J = self.tangent.jacobian(batch, self.directions, project)
        else:
            J = self.directions.new_zeros(len(batch), len(self.directions), 0)
        if self.ladder is not None:
            h = self.ladder(batch)
        return h.to(self.directions.dtype), J

    def tangents(self, batch: Tensor, *, full_precision: bool = False) -> tuple[Tensor, Tensor]:
        """Return the rows of the linear problem, in energy units.

        These are `shared` of shape (n, width + 1): features, for the pseudo kernel tangent features, and
        a constant; and `own` of shape (n, C, components): the Jacobians of the classes, which have no
        components for the pseudo kernel.
        """
        h, J = self.passes(batch, full_precision=full_precision)
        h, J = h / self.scale_h, J / self.scale_J
        constant = h.new_full((len(h), 1), 1 / self.scale_h)
        none = h.new_zeros(len(h), self.settings.n_classes, 0)
        if not self.projection.k:
            return torch.cat([h, constant], 1), none
        if self.settings.kernel == "full":
            return torch.cat([h, constant], 1), J
        phi = J.flatten(1) / math.sqrt(len(self.directions))
        return torch.cat([h, phi, constant], 1), none

    def all_tangents(
        self,
        rows: Iterable[np.ndarray],
        numbers: np.ndarray | None = None,
        n_threads: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the `tangents` of contents, several batches together, on the device of the passes.

        Rows are read in the calling thread; on the CPU, the passes run in one of their own. A
        JacobianError calls a row without finite tangents by its number, by default its place.
        """
        start = 0
        with passing(self.device, n_threads) as call:
            passes = (call(self.tangents, batch) for batch in self.batches(rows))
            while held := list(islice(passes, self._batches_at_once)):
                h, J = (torch.cat(parts) for parts in zip(*held, strict=True))
                del held  # not beside the batches that come next
                finite = h.isfinite().all(1) & J.isfinite().flatten(1).all(1)
                if not finite.all():
                    row = start + int((~finite).nonzero()[0])
                    raise JacobianError(
                        "Expected finite features and Jacobians of every row, got NaN or infinity in "
                        f"row {row if numbers is None else numbers[row]}. Repair that row, or the "
                        'backbone; precision="float64" helps where float32 overflows.'
                    )
                start += len(h)
                yield h, J
                del h, J

    @property
    def _batches_at_once(self) -> int:
        """How many batches wait until they are added to the sums, or leave the device, together."""
        size = self.settings.batch_size
        return -(-rows_at_once(*self.sizes, self.settings.n_classes, size) // size)

    def synthetic(self, n: int) -> Tensor:
        """Return a batch of n synthetic rows, the same each time."""
        dtype = self.directions.dtype
        drawn = self.backbone.synthetic(n, self.settings.seed, self.settings.n_features, dtype)
        return drawn.to(self.device)

    def probe(self, n_threads: int | None = None, size: int | None = None) -> Tensor:
        """Return what shows drift between two machines, float64 of shape (n_probe,).

        These are features, and Jacobians of at most ten directions, of up to four rows that are spread
        over a full synthetic batch. In a smaller batch of `size` rows, a multiple of four, they fill all
        places, again and again, and so do their numbers in what is returned.
        """
        model, batch = self, self.synthetic(self.settings.batch_size)
        rows = torch.linspace(0, len(batch) - 1, min(len(batch), _PROBED_ROWS)).long().to(self.device)
        if size is not None:
            model, batch = self.in_batches(size), batch[rows.repeat(size // len(rows))]
            rows = torch.arange(size, device=self.device)
        with passing(self.device, n_threads) as call:
            h, J = call(model.passes, batch)
        h, J = h[rows] / self.scale_h, J[rows, :_PROBED_DIRECTIONS] / self.scale_J
        return torch.cat([h, J.flatten(1)], 1).flatten().cpu().double()

    def in_batches(self, size: int) -> LinearizedModel:
        """Return the model with batches of another size, in which rows may come out otherwise."""
        return replace(self, settings=replace(self.settings, batch_size=size))

    def smaller_sizes(self, n_rows: int) -> list[int]:
        """Return sizes of batches worth a try for so few rows, smallest first."""
        size = max(_PROBED_ROWS, 2 ** (n_rows - 1).bit_length())
        return [each for each in sorted({size, max(size, _LIKELY)}) if each < self.settings.batch_size]

    @property
    def n_probe(self) -> int:
        """How many numbers `probe` returns."""
        n_directions = min(_PROBED_DIRECTIONS, len(self.directions))
        return min(self.settings.batch_size, _PROBED_ROWS) * (self.d + n_directions * self.projection.k)

    def learn(
        self,
        statistics: Statistics,
        rows: Iterable[np.ndarray],
        labels: np.ndarray,
        weights: np.ndarray,
        numbers: np.ndarray | None = None,
        n_threads: int | None = None,
        kept: list[np.ndarray] | None = None,
    ) -> np.ndarray:
        r"""Add the rows' outer products to the statistics, in place and where these are.

        Rows are read in the calling thread; on the CPU, the passes run in one of their own with
        `n_threads`, by default as many as the calling thread has. Errors call the rows by their
        `numbers`, by default 0 to n - 1. The rows' augmented features, of shape (width + 1,), are
        appended to `kept`, if it is given. Return the rows' energies, float64 of shape (n,),
        :math:`w_i (\|\tilde h_i\|^2 + \sum_c \|J_{ic}\|^2)`.
        """
        place, start = statistics.device, 0
        energies = [torch.zeros(0, dtype=torch.float64, device=place)]
        for h, J in self.all_tangents(rows, numbers, n_threads):
            h, J, here = h.to(place), J.to(place), slice(start, start + len(h))
            w = sent(torch.from_numpy(weights[here]), place)
            statistics.add(h, J, sent(torch.from_numpy(labels[here]), place), w)
            energies.append(row_energies(h, J, w))
            if kept is not None:
                kept += [row.copy() for row in h.cpu().numpy()]
            start = here.stop
            del h, J  # not beside those of the next batches
        return torch.cat(energies).cpu().numpy()

    def batches(self, rows: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Group contents into batches as they enter the backbone."""
        rows = iter(rows)
        with kept_heap(self.device):
            while chunk := list(islice(rows, self.settings.batch_size)):
                yield self.backbone.spec.normalise(chunk, self.directions.dtype, self.device)

    def publish(self, W: Tensor, z: Tensor) -> Parameters:
        """Turn a solution in energy units into parameters of the backbone, in its precision.

        W has shape (C, width + 1) and z shape (components,), both in float64.
        """
        dtype = self.directions.dtype
        delta = z
        if self.settings.kernel == "full":
            delta = self.projection.expand(z) * (math.sqrt(self.settings.tangent_scale) / self.scale_J)
        return self.parameters((W / self.column_scales).to(dtype), delta.to(dtype))

    @torch.no_grad()
    def scores(
        self,
        parameters: Parameters,
        rows: Iterable[np.ndarray],
        *,
        predict_with: str | None = None,
    ) -> np.ndarray:
        r"""Return float64 scores of shape (n, C); without `predict_with`, by that of the settings.

        "linear" is the linearised model (one directional derivative). "network" puts the displaced
        weights into the network: :math:`W h(x; \theta)` at a trained anchor, and
        :math:`W h(x; \theta) + V (h(x; \theta) - h(x; \theta_0))` at the pretrained one (two forward
        passes). The pseudo kernel takes its tangent features again.
        """
        settled_threads()
        W, delta = parameters.W.to(self.device), parameters.delta.to(self.device)
        net = None
        if self.settings.kernel == "full" and (predict_with or self.settings.predict_with) == "network":
            net = parameters.network or self.displaced_copy(delta, shared=True)
        batches = self.batches(rows)
        if self.settings.kernel == "pseudo":
            readout = (W * self.column_scales.to(W)).T
            parts = (self.tangents(batch, full_precision=True)[0] @ readout for batch in batches)
        else:
            of_view = partial(self._scores, W, delta, net)
            parts = (averaged(of_view, batch, self.settings.augment) for batch in batches)
        scores = []
        with exact_kernels(self.device):
            while held := list(islice(parts, self._batches_at_once)):
                scores.append(torch.cat(held).cpu().double().numpy())
        return np.concatenate(scores)

    def _scores(self, W: Tensor, delta: Tensor, net: nn.Module | None, batch: Tensor) -> Tensor:
        displaced = bool(self.tangent.subset.names)
        if net is not None:
            h = net(batch)
            displaced = displaced and self.moved is None
            change = h - self.backbone.net(batch) if displaced else h
        elif displaced or self.ladder is None:
            h, change = self.tangent.directional(batch, delta)
        if self.ladder is not None:
            h = self.ladder(batch)
        scores = h @ W[:, :-1].T + W[:, -1]
        return scores + change @ self.directions.T if displaced else scores


def own_names(backbone: Backbone, tuned: Sequence[str]) -> list[str]:
    """Return the names of prompts, of LoRA's A, of all tensors of the "mlp", and of what SGD tuned."""
    return [
        name
        for name in backbone.net.state_dict()
        if backbone.name == "mlp" or name.endswith((".prompt", LORA_A)) or name in tuned
    ]


def row_energies(h: Tensor, J: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted squared norms of rows of the linear problem, float64 of shape (n,)."""
    return weights * sum(part.flatten(1).square().sum(1, dtype=torch.float64) for part in (h, J))


def working_dtype(precision: str) -> torch.dtype:
    """Return the dtype of weights, features and Jacobians: bfloat16 is within the passes only."""
    return torch.float64 if precision == "float64" else torch.float32


def relative_gap(found: Tensor, expected: Tensor) -> float:
    """Return the norm of a difference over the norm of what was expected."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
