"""The linearised model: a frozen backbone, its tangent features, and predictions from parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from .backbones import Backbone, load_backbone, with_readout
from .exceptions import JacobianError, SubsetError
from .jacobians import TangentNetwork
from .memory import BUFFER_NUMBERS, check_memory, choose_components, memory_needed
from .projection import Projection
from .randomness import generator
from .statistics import Statistics
from .subsets import as_entries, insert_prompts, select

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
    r"""Everything that is fixed before the first row enters the statistics.

    .. math:: f(x) = W \tilde h(x) + \sqrt{s} J(x) Q z, \quad
              J(x) = \partial_\theta [V h(x; \theta)]_{\theta_0}

    Parameters
    ----------
    backbone : Backbone

    tangent : TangentNetwork

    projection : Projection
        Q, from p trainable parameters to k components.

    readout : Tensor of shape (C, d)
        V. At the pretrained anchor N(0, 1/d), seeded for each class by its index, never a function
        of the data; at a fine-tuned one what SGD learned.

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

    moved : Tensor of shape (k,), default=None
        For a fine-tuned anchor: its displacement from the pretrained values, within span(Q).
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
    moved: Tensor | None = None

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
        moved: Tensor | None = None,
    ) -> LinearizedModel:
        """Load the backbone, choose the subset and measure the energy units.

        The arguments are those of `FastNTKClassifier`; `network`, `units`, `readout` and `moved` are
        given when a saved state is loaded (`network` holds the tensors of `own_tensors`).

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
            moved,
        )
        model.scale_h, model.scale_J, model.position_gap = units or model._measure(synthetic)
        return model

    @property
    def d(self) -> int:
        """Number of features."""
        return self.readout.shape[1]

    def tuned(self, moved: Tensor, readout: Tensor, seed: int) -> LinearizedModel:
        """Return the model that is linearised at a fine-tuned anchor.

        Parameters
        ----------
        moved : Tensor of shape (k,)
            The anchor is theta_0 + Q moved.

        readout : Tensor of shape (C, d)
            V, the fine-tuned readout on the features.

        seed : int

        Returns
        -------
        model : LinearizedModel
            In units of the anchor, or of this model where its Jacobians are larger; this one is not
            changed.
        """
        net = self.network_at(self.projection.expand(moved))
        backbone = replace(self.backbone, net=net)
        dtype, device = self.readout.dtype, self.readout.device
        synthetic = backbone.synthetic(_SYNTHETIC_ROWS, seed, self.n_features, dtype).to(device)
        tangent = TangentNetwork(net, self.tangent.subset, synthetic[:2])
        model = replace(
            self,
            backbone=backbone,
            tangent=tangent,
            readout=readout,
            moved=moved,
            scale_h=1.0,
            scale_J=1.0,
        )
        model.scale_h, model.scale_J, model.position_gap = model._measure(synthetic)
        # a readout that has hardly learned has small Jacobians: magnified, they would ask for
        # displacements that the network does not follow
        model.scale_J = max(model.scale_J, self.scale_J)
        return model

    def centre(self, tangent_scale: float) -> Tensor | None:
        r"""Return where the ridge on z is centred: the pretrained values, as seen from the anchor.

        Parameters
        ----------
        tangent_scale : float

        Returns
        -------
        centre : float64 Tensor of shape (k,), or None
            :math:`-c_J z^* / \sqrt{s}` for an anchor at theta_0 + Q z*; None stands for zero.
        """
        if self.moved is None or not tangent_scale:
            return None
        return self.moved.double() * (-self.scale_J / math.sqrt(tangent_scale))

    def displacement(self, parameters: Parameters) -> Tensor:
        """Return theta - theta_0 of shape (p,), the anchor's own displacement included."""
        if self.moved is None:
            return parameters.delta
        return parameters.delta + self.projection.expand(self.moved).to(parameters.delta.dtype)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the network that are not in its source.

        These are prompts, the whole "mlp", and the trainable subset at a fine-tuned anchor.
        """
        everything = self.setup["backbone"] == "mlp"
        tuned = () if self.moved is None else self.tangent.subset.names
        return {
            name: tensor
            for name, tensor in self.backbone.net.state_dict().items()
            if everything or name.endswith(".prompt") or name in tuned
        }

    def to_module(self, parameters: Parameters, empty: np.ndarray) -> nn.Module:
        """Return the displaced network with its readout as one module; see the classifier.

        Parameters
        ----------
        parameters : Parameters

        empty : bool ndarray of shape (C,)
            Classes without rows: their bias is -inf, so that they are never predicted.
        """
        W = parameters.W.clone()
        W[torch.from_numpy(empty), -1] = -math.inf
        return with_readout(self.network_at(parameters.delta), W)

    def network_at(self, delta: Tensor) -> nn.Module:
        """Return a copy of the network of features with the subset displaced from the anchor."""
        net = copy.deepcopy(self.backbone.net)
        net.load_state_dict(self._displaced(delta), strict=False)
        return net

    def _displaced(self, delta: Tensor) -> dict[str, Tensor]:
        net = self.backbone.net
        parts = self.tangent.subset.split(delta.to(self.readout))
        return {name: net.get_parameter(name).detach() + part for name, part in parts.items()}

    def memory_needed(self) -> int:
        """Estimate the peak bytes of a deletion."""
        batch_bytes = self.batch_size * self.projection.p * self.readout.itemsize
        return memory_needed(self.d, self.projection.k, len(self.readout), batch_bytes)

    def empty_statistics(self) -> Statistics:
        """Return zero sums of the right size."""
        return Statistics(self.d, self.projection.k, len(self.readout), 1 / self.scale_h)

    def _project(self, rows: Tensor) -> Tensor:
        return self.projection.project(rows.cpu())

    def tangents(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented features (n, d + 1) and projected Jacobians (n, C, k) in energy units.

        Parameters
        ----------
        batch : Tensor of shape (n, ...)
            Padded to `batch_size` meanwhile.
        """
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
            h, J = self.tangents(batch)
            first = first or (h, J)
            energies.append((h.square().sum(1), J.square().sum(2).mean(1)))
        mean_h, mean_J = (float(torch.cat(e).double().mean()) for e in zip(*energies, strict=True))
        if not math.isfinite(mean_h + mean_J):
            raise JacobianError(
                f"Features or Jacobians of {self.backbone.name} are NaN or infinite on synthetic "
                "inputs. Check its weights, or use precision='float64'."
            )
        assert first is not None
        moved = [part.roll(-1, 0) for part in self.tangents(synthetic[: self.batch_size].roll(1, 0))]
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
        h, J = self.tangents(batch)
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
        capacity = max(self.batch_size, min(256, BUFFER_NUMBERS // numbers))
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

        for batch in self.batches(rows):
            held.append(self.tangents(batch))
            stop += len(batch)
            if stop - start >= capacity:
                flush()
        if held:
            flush()

    def batches(self, rows: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Group contents into batches as they enter the backbone."""
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
        r"""Predict.

        Parameters
        ----------
        parameters : Parameters

        rows : iterable of ndarray

        network : bool, default=False
            Put the displaced weights into the network instead of using the linearised model (one
            directional derivative): :math:`W h(x; \theta)` at a fine-tuned anchor, and
            :math:`W h(x; \theta) + V (h(x; \theta) - h(x; \theta_0))` at the pretrained one (two
            forward passes).

        Returns
        -------
        scores : float64 ndarray of shape (n, C)
        """
        W, delta = (t.to(self.readout.device) for t in (parameters.W, parameters.delta))
        net, displaced = self.backbone.net, self._displaced(delta)
        scores = []
        for batch in self.batches(rows):
            if not network:
                h, change = self.tangent.directional(batch, delta)
                out = h @ W[:, :-1].T + W[:, -1] + change @ self.readout.T
            else:
                h = functional_call(net, displaced, (batch,))
                out = h @ W[:, :-1].T + W[:, -1]
                if self.moved is None and displaced:
                    out = out + (h - net(batch)) @ self.readout.T
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
