"""The linearised model: a frozen backbone, its tangent features, and predictions from parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..backbones.loading import Backbone
from ..exceptions import JacobianError
from ..settings import Settings
from ..sums.memory import block_sizes, memory_needed, rows_at_once
from ..sums.statistics import Statistics
from .heap import kept_heap
from .jacobians import TangentNetwork, flushed_denormals
from .ladder import Ladder
from .projection import Projection
from .saved import own_names


@dataclass(frozen=True)
class Parameters:
    """What predicts, in the precision of the backbone's passes; this is what is published.

    Parameters
    ----------
    W : Tensor of shape (C, d + 1), or (C, d + r k + 1) for the pseudo kernel
        Readout on [features, 1], or on [features, tangent features, 1].

    delta : Tensor of shape (p,), or (0,) for the pseudo kernel
        Displacement of the trainable parameters from the anchor.
    """

    W: Tensor
    delta: Tensor


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

    Parameters
    ----------
    backbone : Backbone

    tangent : TangentNetwork

    projection : Projection
        Q, from p trainable parameters to k components.

    directions : Tensor of shape (C, d), or (r, d) for the pseudo kernel
        V, the probe directions. At the pretrained anchor N(0, 1/d), seeded for each row by its index,
        never a function of the data, and without rows where no parameter is displaced; at a
        fine-tuned one what SGD learned.

    settings : Settings
        Every learning pass pads its batches to `batch_size`, so that a row's result does not depend on
        the request that it comes in.

    origin : dict
        "base_model" and "revision" of the backbone's weights, as far as they are known.

    scale_h, scale_J : float
        Powers of two that bring the mean energy (squared norm of a row) of augmented features and
        of projected Jacobians near 1 on synthetic inputs.

    position_gap : float
        Relative change of synthetic rows' Jacobians when they change places in their batch; 0 where
        it is within float64 rounding.

    moved : Tensor of shape (k,), default=None
        For a fine-tuned anchor: its displacement from the pretrained values, within span(Q).

    ladder : Ladder, default=None
        Gives the features that W reads in place of h; V still reads h.
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
    def d(self) -> int:
        """Number of features that W reads: the network's, or the ladder's."""
        return self.directions.shape[1] if self.ladder is None else self.ladder.width

    @property
    def sizes(self) -> tuple[int, int]:
        """Columns that all classes share (without the constant), and those of each class's own block."""
        return block_sizes(self.settings.kernel, self.d, self.projection.k, len(self.directions))

    @property
    def units(self) -> Tensor:
        """What the columns of the shared block are divided by, of shape (width + 1,)."""
        units = self.directions.new_full((self.sizes[0] + 1,), self.scale_h).cpu()
        units[self.d : -1] = self.scale_J
        return units

    def centre(self) -> Tensor | None:
        r"""Return where the ridge on z is centred: the pretrained values, as seen from the anchor.

        Returns
        -------
        centre : float64 Tensor of shape (k,), or None
            :math:`-c_J z^* / \sqrt{s}` for an anchor at theta_0 + Q z*; None stands for zero.
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
        """Return theta - theta_0 of shape (n_displaced,), the anchor's own displacement included."""
        if self.moved is None:
            return parameters.delta
        return parameters.delta + self.projection.expand(self.moved).to(parameters.delta.dtype)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the network that are not in its source.

        These are prompts, the whole "mlp", and the trainable subset at a fine-tuned anchor.
        """
        tensors = self.backbone.net.state_dict()
        tuned = None if self.moved is None else self.tangent.subset
        return {name: tensors[name] for name in own_names(self.backbone, tuned)}

    def network_at(self, delta: Tensor) -> nn.Module:
        """Return a copy of the network of features with the subset displaced from the anchor."""
        net = copy.deepcopy(self.backbone.net)
        net.load_state_dict(self.displaced(delta), strict=False)
        return net

    def displaced(self, delta: Tensor) -> dict[str, Tensor]:
        """Return the values of the subset, displaced from the anchor, by name."""
        net = self.backbone.net
        parts = self.tangent.subset.split(delta.to(self.directions))
        return {name: net.get_parameter(name).detach() + part for name, part in parts.items()}

    def memory_needed(self) -> int:
        """Estimate the peak bytes of a deletion."""
        batch_bytes = self.settings.batch_size * self.projection.p * self.directions.itemsize
        return memory_needed(*self.sizes, self.settings.n_classes, batch_bytes, self.settings.batch_size)

    def empty_statistics(self) -> Statistics:
        """Return zero sums of the right size."""
        width, components = self.sizes
        return Statistics(width, components, self.settings.n_classes, 1 / self.scale_h, width - self.d)

    def passes(self, batch: Tensor, *, full_precision: bool = False) -> tuple[Tensor, Tensor]:
        """Return features (n, d) and projected Jacobians (n, rows of the readout, k), not scaled.

        Parameters
        ----------
        batch : Tensor of shape (n, ...)
            Padded to `batch_size` meanwhile.

        full_precision : bool, default=False
            Without autocast.
        """
        n = len(batch)
        if n < self.settings.batch_size:
            batch = torch.cat([batch, batch[:1].expand(self.settings.batch_size - n, *batch.shape[1:])])
            if batch.ndim == 4:
                batch = batch.contiguous(memory_format=torch.channels_last)
        low = self.settings.precision == "bfloat16" and not full_precision
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=low):
            if self.ladder is None:
                h, J = self.tangent.jacobian(batch, self.directions, self._project)
            else:
                with flushed_denormals():
                    h = self.ladder(batch)
                J = h.new_zeros(len(h), len(self.directions), 0)
                if self.tangent.subset.names:
                    _, J = self.tangent.jacobian(batch, self.directions, self._project)
        return h[:n].to(self.directions.dtype).cpu(), J[:n]

    def _project(self, rows: Tensor) -> Tensor:
        return self.projection.project(rows.to(self.directions.dtype).cpu())

    def tangents(self, batch: Tensor, *, full_precision: bool = False) -> tuple[Tensor, Tensor]:
        """Return the rows of the linear problem, in energy units.

        Parameters
        ----------
        batch : Tensor of shape (n, ...)

        full_precision : bool, default=False
            As in `passes`.

        Returns
        -------
        shared : Tensor of shape (n, width + 1)
            Features, for the pseudo kernel tangent features, and a constant.

        own : Tensor of shape (n, C, components)
            Jacobians of the classes; no components for the pseudo kernel.
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

    def probe(self, n_threads=None) -> Tensor:
        """Return tangent features of a synthetic row: they show drift between two machines.

        Returns
        -------
        probe : float64 Tensor
            Features, and the Jacobians of at most ten rows of the readout.
        """
        dtype = self.directions.dtype
        settings = self.settings
        batch = self.backbone.synthetic(1, settings.seed, settings.n_features, dtype).to(
            self.directions.device
        )
        h, J = self.passes(batch)
        return torch.cat([h[0] / self.scale_h, J[0, :10].flatten() / self.scale_J]).double()

    def learn(
        self,
        statistics: Statistics,
        rows: Iterable[np.ndarray],
        labels: np.ndarray,
        weights: np.ndarray,
        n_threads=None,
    ) -> np.ndarray:
        """Add the rows' outer products to the statistics; negative weights subtract.

        Parameters
        ----------
        statistics : Statistics
            Changed in place.

        rows : iterable of ndarray
            Contents as `preprocessing.Rows` gives them.

        labels : int64 ndarray of shape (n,)

        weights : float64 ndarray of shape (n,)

        added : callable, optional
            Called with the number of rows in the statistics each time that it has grown.
        """
        capacity = rows_at_once(*self.sizes, self.settings.n_classes, self.settings.batch_size)
        held: list[tuple[Tensor, Tensor]] = []
        start = stop = 0
        energies = []

        def flush() -> None:
            nonlocal start
            h, J = (torch.cat(parts) for parts in zip(*held, strict=True))
            check_finite(h, J, start)
            start0 = start
            statistics.add(
                h, J, torch.from_numpy(labels[start:stop]), torch.from_numpy(weights[start:stop])
            )
            held.clear()
            start = stop
            energies.append(
                np.abs(weights[start0:stop])
                * (h.double().square().sum(1) + J.double().square().sum((1, 2))).numpy()
            )

        for batch in self.batches(rows):
            held.append(self.tangents(batch))
            stop += len(batch)
            if stop - start >= capacity:
                flush()
        if held:
            flush()
        return np.concatenate(energies)

    def batches(self, rows: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Group contents into batches as they enter the backbone."""
        dtype, device = self.directions.dtype, self.directions.device
        rows = iter(rows)
        with kept_heap():
            while chunk := list(islice(rows, self.settings.batch_size)):
                yield self.backbone.spec.normalise(chunk, dtype).to(device)

    def publish(self, W: Tensor, z: Tensor) -> Parameters:
        """Turn a solution in energy units into parameters of the backbone.

        Parameters
        ----------
        W : float64 Tensor of shape (C, width + 1)

        z : float64 Tensor of shape (components,)

        Returns
        -------
        parameters : Parameters
            Rounded to the precision of the backbone's passes.
        """
        dtype = self.directions.dtype
        delta = z
        if self.settings.kernel == "full":
            delta = self.projection.expand(z) * (math.sqrt(self.settings.tangent_scale) / self.scale_J)
        return Parameters((W / self.units).to(dtype), delta.to(dtype))

    @torch.no_grad()
    def scores(
        self, parameters: Parameters, rows: Iterable[np.ndarray], *, network: bool = False
    ) -> np.ndarray:
        r"""Predict.

        Parameters
        ----------
        parameters : Parameters

        rows : iterable of ndarray

        network : bool, default=False
            Put the displaced weights into the network instead of using the linearised model (one
            directional derivative): :math:`W h(x; \theta)` at a fine-tuned anchor, and
            :math:`W h(x; \theta) + V (h(x; \theta) - h(x; \theta_0))` at the pretrained one (two
            forward passes). Not for the pseudo kernel, which takes its tangent features again.

        Returns
        -------
        scores : float64 ndarray of shape (n, C)
        """
        W, delta = (t.to(self.directions.device) for t in (parameters.W, parameters.delta))
        net, displaced = self.backbone.net, self.displaced(delta) if network else {}
        scores = []
        for batch in self.batches(rows):
            if self.settings.kernel == "pseudo":
                shared, _ = self.tangents(batch, full_precision=True)
                out = shared @ (parameters.W * self.units).T
            elif not network:
                h, change = self._directional(batch, delta)
                out = h @ W[:, :-1].T + W[:, -1]
                if change is not None:
                    out = out + change @ self.directions.T
            else:
                with flushed_denormals():
                    h = functional_call(net, displaced, (batch,))
                    out = h @ W[:, :-1].T + W[:, -1]
                    if self.moved is None and displaced:
                        out = out + (h - net(batch)) @ self.directions.T
            scores.append(out.double().cpu().numpy())
        return np.concatenate(scores)

    def _directional(self, batch: Tensor, delta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features that W reads, and the change of those that V reads, if any."""
        change = None
        if self.ladder is None or self.tangent.subset.names:
            h, change = self.tangent.directional(batch, delta)
        if self.ladder is not None:
            with flushed_denormals():
                h = self.ladder(batch)
        return h, change if self.tangent.subset.names else None


def check_finite(h: Tensor, J: Tensor, first: int) -> None:
    """Raise JacobianError, naming the row, where features or Jacobians are NaN or infinite."""
    finite = h.isfinite().all(1) & J.isfinite().flatten(1).all(1)
    if not finite.all():
        row = first + int((~finite).nonzero()[0])
        raise JacobianError(
            f"Expected finite features and Jacobians of every row, got NaN or infinity in row {row}. "
            'Repair that row, or the backbone; precision="float64" helps where float32 overflows.'
        )


def working_dtype(precision: str) -> torch.dtype:
    """Return the dtype of weights, features and Jacobians: bfloat16 is within the passes only."""
    return torch.float64 if precision == "float64" else torch.float32


def relative_gap(found: Tensor, expected: Tensor) -> float:
    """Return the norm of a difference over the norm of what was expected."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
