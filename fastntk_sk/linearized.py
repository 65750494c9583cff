"""The linearised model: a frozen backbone, its tangent features, and predictions from parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.func import functional_call

from .backbones import Backbone, load_backbone
from .exceptions import InsufficientMemoryError, JacobianError, SubsetError
from .jacobians import TangentNetwork
from .projection import Projection
from .randomness import generator
from .statistics import Statistics
from .subsets import as_entries, insert_prompts, select

_AUTO_COMPONENTS = 4096
_AUTO_NUMBERS = 2**29  # at most 4 GiB of float64 in the class blocks, whatever the machine
_BUFFER_NUMBERS = 2**24
_SYNTHETIC_ROWS = 100


@dataclass(frozen=True)
class Parameters:
    """What predicts, in the precision of the backbone's passes; this is what is published.

    Parameters
    ----------
    W : Tensor of shape (C, d + 1)
        Readout on [features, 1].

    delta : Tensor of shape (p,)
        Displacement of the trainable parameters from their pretrained values.
    """

    W: Tensor
    delta: Tensor


@dataclass
class LinearizedModel:
    r"""Everything that is fixed before the first row is seen.

    .. math:: f(x) = W \tilde h(x) + \sqrt{s} J(x) Q z, \quad
              J(x) = \partial_\theta [V h(x; \theta)]_{\theta_0}

    Parameters
    ----------
    backbone : Backbone

    tangent : TangentNetwork

    projection : Projection
        Q, from p trainable parameters to k components.

    readout : Tensor of shape (C, d)
        V: N(0, 1/d), seeded for each class by its index, never a function of the data.

    scale_h, scale_J : float
        Powers of two that bring the mean energy (squared norm of a row) of augmented features and
        of projected Jacobians near 1 on synthetic inputs.

    position_gap : float
        Relative change of synthetic rows' Jacobians when they change places in their batch; 0 where
        it is within float64 rounding.

    batch_size : int
        Every learning pass pads its batches to this size, so that a row's result does not depend on
        the request that it comes in.

    n_features : int or None
        Length of input vectors.

    setup : dict
        The arguments that decide which network is built, for a saved state.
    """

    backbone: Backbone
    tangent: TangentNetwork
    projection: Projection
    readout: Tensor
    scale_h: float
    scale_J: float
    position_gap: float
    batch_size: int
    n_features: int | None
    setup: dict[str, Any]

    @classmethod
    def build(
        cls,
        backbone: Any,
        X: Any,
        *,
        n_classes: int,
        trainable: str | Sequence[str],
        n_prompts: int,
        n_components: int | str | None,
        pretrained: bool,
        image_size: int | tuple[int, int] | None,
        batch_size: int,
        n_features: int | None,
        dtype: torch.dtype,
        device: str,
        seed: int,
        network: dict[str, Tensor] | None = None,
        units: tuple[float, float, float] | None = None,
        readout: Tensor | None = None,
    ) -> LinearizedModel:
        """Load the backbone, choose the subset and measure the energy units.

        The arguments are those of `FastNTKClassifier`; `network`, `units` and `readout` are given
        when a saved state is loaded (`network` holds tensors that depend on the seed: prompt tokens,
        or the weights of the random network on vectors).

        Raises
        ------
        SubsetError
            If the trainable subset does not exist in the backbone.

        InsufficientMemoryError
            If the statistics would not fit; raised before they are allocated.
        """
        loaded = load_backbone(
            backbone,
            pretrained=pretrained,
            image_size=image_size,
            X=X,
            n_features=n_features,
            seed=seed,
        )
        prompts = {"prompt", "prompt-deep"} & set(as_entries(trainable))
        if prompts:
            insert_prompts(
                loaded.net,
                n_prompts,
                deep="prompt-deep" in prompts,
                generator=generator(seed, "prompts"),
            )
        loaded.net.to(dtype=dtype, device=device)
        if network:
            loaded.net.load_state_dict(network, strict=False)
        subset = select(loaded.net, trainable)
        n_synthetic = _SYNTHETIC_ROWS if units is None else 2
        synthetic = loaded.synthetic(n_synthetic, seed, n_features, dtype).to(device)
        with torch.no_grad():
            features = loaded.net(synthetic[:2])
        if features.ndim != 2:
            raise SubsetError(
                "Expected the backbone to return features of shape (n, d), got "
                f"{tuple(features.shape)}. Wrap it in a module that pools them."
            )
        d = features.shape[1]
        k = choose_components(n_components, subset.size, n_classes, d)
        check_memory(d, k, n_classes, batch_size * subset.size * dtype.itemsize)
        tangent = TangentNetwork(loaded.net, subset, synthetic[:2])
        if readout is None:
            readout = draw_readout(seed, n_classes, d)
        model = cls(
            loaded,
            tangent,
            Projection(subset.size, k, seed, dtype),
            readout.to(dtype=dtype, device=device),
            1.0,
            1.0,
            0.0,
            batch_size,
            n_features,
            {
                "backbone": backbone if isinstance(backbone, str) else None,
                "trainable": list(as_entries(trainable)),
                "n_prompts": n_prompts,
                "pretrained": pretrained,
                "image_size": loaded.spec.size,
            },
        )
        model.scale_h, model.scale_J, model.position_gap = units or model._measure(synthetic)
        return model

    @property
    def d(self) -> int:
        """Number of features."""
        return self.readout.shape[1]

    def seeded_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the network that come from the seed: prompts, or the whole "mlp"."""
        everything = self.setup["backbone"] == "mlp"
        return {
            name: tensor
            for name, tensor in self.backbone.net.state_dict().items()
            if everything or name.endswith(".prompt")
        }

    def memory_needed(self) -> int:
        """Estimate the peak bytes of a deletion."""
        batch_bytes = self.batch_size * self.projection.p * self.readout.itemsize
        return memory_needed(self.d, self.projection.k, len(self.readout), batch_bytes)

    def empty_statistics(self) -> Statistics:
        """Return zero sums of the right size."""
        return Statistics(self.d, self.projection.k, len(self.readout), 1 / self.scale_h)

    def _project(self, rows: Tensor) -> Tensor:
        return self.projection.project(rows.cpu())

    def _batch(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        n = len(batch)
        if n < self.batch_size:
            batch = torch.cat([batch, batch[:1].expand(self.batch_size - n, *batch.shape[1:])])
            if batch.ndim == 4:
                batch = batch.contiguous(memory_format=torch.channels_last)
        h, J = self.tangent.jacobian(batch, self.readout, self._project)
        h = torch.cat([h.cpu(), h.new_ones(len(h), 1).cpu()], dim=1)
        return h[:n] / self.scale_h, J[:n] / self.scale_J

    def _measure(self, synthetic: Tensor) -> tuple[float, float, float]:
        """Return the scales of features and Jacobians, and the effect of a row's place."""
        energies, first = [], None
        for batch in synthetic.split(self.batch_size):
            h, J = self._batch(batch)
            first = first or (h, J)
            energies.append((h.square().sum(1), J.square().sum(2).mean(1)))
        mean_h, mean_J = (float(torch.cat(e).double().mean()) for e in zip(*energies, strict=True))
        if not math.isfinite(mean_h + mean_J):
            raise JacobianError(
                f"Features or Jacobians of {self.backbone.name} are NaN or infinite on synthetic "
                "inputs. Check its weights, or use precision='float64'."
            )
        assert first is not None
        moved = [part.roll(-1, 0) for part in self._batch(synthetic[: self.batch_size].roll(1, 0))]
        gap = max(relative_gap(new, old) for new, old in zip(moved, first, strict=True))
        return _power_of_two(mean_h), _power_of_two(mean_J), gap if gap > 1e-12 else 0.0

    def probe(self, seed: int) -> Tensor:
        """Return tangent features of a synthetic row: they show drift between two machines.

        Parameters
        ----------
        seed : int

        Returns
        -------
        probe : float64 Tensor
            Features, and the Jacobians of at most ten classes.
        """
        dtype = self.readout.dtype
        batch = self.backbone.synthetic(1, seed, self.n_features, dtype).to(self.readout.device)
        h, J = self._batch(batch)
        return torch.cat([h[0], J[0, :10].flatten()]).double()

    def learn(
        self,
        statistics: Statistics,
        rows: Iterable[np.ndarray],
        labels: np.ndarray,
        weights: np.ndarray,
    ) -> None:
        """Add the rows' outer products to the statistics; negative weights subtract.

        Parameters
        ----------
        statistics : Statistics
            Changed in place.

        rows : iterable of ndarray
            Contents as `preprocessing.Rows` gives them.

        labels : int64 ndarray of shape (n,)

        weights : float64 ndarray of shape (n,)
        """
        numbers = len(self.readout) * max(1, self.projection.k)
        capacity = max(self.batch_size, min(256, _BUFFER_NUMBERS // numbers))
        held: list[tuple[Tensor, Tensor]] = []
        start = stop = 0

        def flush() -> None:
            nonlocal start
            h, J = (torch.cat(parts) for parts in zip(*held, strict=True))
            statistics.add(
                h, J, torch.from_numpy(labels[start:stop]), torch.from_numpy(weights[start:stop])
            )
            held.clear()
            start = stop

        for batch in self._batches(rows):
            held.append(self._batch(batch))
            stop += len(batch)
            if stop - start >= capacity:
                flush()
        if held:
            flush()

    def _batches(self, rows: Iterable[np.ndarray]) -> Iterator[Tensor]:
        dtype, device = self.readout.dtype, self.readout.device
        rows = iter(rows)
        while chunk := list(islice(rows, self.batch_size)):
            yield self.backbone.spec.normalise(chunk, dtype).to(device)

    def publish(self, W: Tensor, z: Tensor, tangent_scale: float) -> Parameters:
        """Turn a solution in energy units into parameters of the backbone.

        Parameters
        ----------
        W : float64 Tensor of shape (C, d + 1)

        z : float64 Tensor of shape (k,)

        tangent_scale : float

        Returns
        -------
        parameters : Parameters
            Rounded to the precision of the backbone's passes.
        """
        dtype = self.readout.dtype
        delta = self.projection.expand(z) * (math.sqrt(tangent_scale) / self.scale_J)
        return Parameters((W / self.scale_h).to(dtype), delta.to(dtype))

    @torch.no_grad()
    def scores(
        self, parameters: Parameters, rows: Iterable[np.ndarray], *, network: bool = False
    ) -> np.ndarray:
        """Predict.

        Parameters
        ----------
        parameters : Parameters

        rows : iterable of ndarray

        network : bool, default=False
            Evaluate :math:`W h(x; theta) + V (h(x; theta) - h(x; theta_0))` with the displaced
            weights in the network (two forward passes) instead of the linearised model (one
            directional derivative).

        Returns
        -------
        scores : float64 ndarray of shape (n, C)
        """
        W, delta = (t.to(self.readout.device) for t in (parameters.W, parameters.delta))
        net, subset = self.backbone.net, self.tangent.subset
        displaced = {name: net.get_parameter(name) + part for name, part in subset.split(delta).items()}
        scores = []
        for batch in self._batches(rows):
            if network:
                h = functional_call(net, displaced, (batch,))
                change = h - net(batch) if subset.names else torch.zeros_like(h)
            else:
                h, change = self.tangent.directional(batch, delta)
            out = h @ W[:, :-1].T + W[:, -1] + change @ self.readout.T
            scores.append(out.double().cpu().numpy())
        return np.concatenate(scores)


def draw_readout(seed: int, n_classes: int, d: int) -> Tensor:
    """Return V, float64 of shape (n_classes, d), N(0, 1/d); row c depends on the seed and c only."""
    rows = [
        torch.randn(d, generator=generator(seed, "readout", c), dtype=torch.float64)
        for c in range(n_classes)
    ]
    return torch.stack(rows) / d**0.5


def relative_gap(found: Tensor, expected: Tensor) -> float:
    """Return the norm of a difference over the norm of what was expected."""
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def _power_of_two(energy: float) -> float:
    """Return the power of two nearest to the square root of an energy; 1 for no energy."""
    return 2.0 ** round(math.log2(energy) / 2) if energy > 0 else 1.0


def choose_components(n_components: int | str | None, p: int, n_classes: int, d: int) -> int:
    """Return k: a function of the sizes only, so that the same call gives the same model everywhere.

    Parameters
    ----------
    n_components : int, "auto" or None

    p, n_classes, d : int

    Returns
    -------
    k : int
        At most p. "auto" is p up to 4096, and fewer where the class blocks would pass 4 GiB.
    """
    if n_components is None:
        return p
    if n_components == "auto":
        return min(p, _AUTO_COMPONENTS, max(64, _AUTO_NUMBERS // (n_classes * (d + 1))))
    return min(p, int(n_components))


def memory_needed(d: int, k: int, n_classes: int, batch_bytes: int) -> int:
    """Estimate the peak bytes of a fit or a deletion.

    Parameters
    ----------
    d, k, n_classes : int

    batch_bytes : int
        Bytes of one class's Jacobian of a batch before it is projected.

    Returns
    -------
    n_bytes : int
        Statistics, their copy during a deletion, the solve, and the rows that wait to be added.
    """
    solve = 8 * (4 * k * k + (d + 1) * k + 3 * (d + 1) ** 2)
    buffer = 3 * 8 * max(_BUFFER_NUMBERS, 32 * n_classes * k)
    return 2 * Statistics.n_bytes(d, k, n_classes) + solve + buffer + 3 * batch_bytes


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping."""
    return psutil.virtual_memory().available


def check_memory(d: int, k: int, n_classes: int, batch_bytes: int) -> None:
    """Raise InsufficientMemoryError, naming a k that fits, if the statistics would not."""
    needed, available = memory_needed(d, k, n_classes, batch_bytes), available_memory()
    if needed <= available:
        return
    fits = next(
        (
            c
            for c in (2**e for e in range(20, 3, -1))
            if c < k and memory_needed(d, c, n_classes, batch_bytes) <= available
        ),
        None,
    )
    advice = f"n_components={fits} would fit" if fits else 'only trainable="head" may fit'
    raise InsufficientMemoryError(
        f"The statistics of {n_classes} classes, {d} features and {k} components need "
        f"{needed:,} bytes ({needed / 2**30:.1f} GiB) and {available:,} are available; nothing was "
        f"allocated. {advice[0].upper()}{advice[1:]}; fewer components need less memory quadratically."
    )
