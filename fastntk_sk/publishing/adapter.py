"""The public half of a fitted estimator: what predicts, and nothing that describes rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.loading import with_readout
from ..settings import Settings
from ..tangents.jacobians import plain_copy
from ..tangents.model import LinearizedModel, Parameters
from ..tangents.rungs import SIDES
from .files import tensors_digest

LADDER_IS_EXACT = (
    "With the ladder nothing is linearised away: the model is linear in its parameters, so that what is "
    "exact is the model itself."
)


@dataclass(frozen=True)
class Adapter:
    """What a fitted estimator publishes.

    Parameters
    ----------
    model : LinearizedModel

    parameters : Parameters

    displacement : Tensor of shape (p,), or (0,) for the pseudo kernel
        theta - theta_0.

    empty : bool ndarray of shape (n_classes,)
        Classes without rows, which are never predicted.

    n_learned, n_forgotten : int

    exactness : list of str
        In what senses the deletions were exact, each sense once.

    heads : list of str
        Digests of the last receipt of each chain.

    classes : ndarray of shape (n_classes,)
        Class labels, from the moment that an estimator holds it.
    """

    model: LinearizedModel
    parameters: Parameters
    displacement: Tensor
    empty: np.ndarray
    n_learned: int
    n_forgotten: int
    exactness: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    classes: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def settings(self) -> Settings:
        """Settings of the fit."""
        return self.model.settings

    @property
    def sharpness(self) -> float:
        r"""What turns scores into a softmax: :math:`\log(99 (C - 1)) / target\_scale`."""
        return math.log(99 * (len(self.empty) - 1)) / self.settings.target_scale

    @property
    def trained(self) -> list[str]:
        """Sides of a ladder, subsets of the network, or "head" where there is neither."""
        entries = self.settings.trainable
        return [entry for entry in entries if entry != "head"] or ["head"]

    @property
    def is_ladder_alone(self) -> bool:
        """Whether a readout of a ladder is all that was learned."""
        return self.model.ladder is not None and not self.model.projection.p

    def described(self) -> dict[str, str]:
        """Return in words what was learned: ladder, tangents (where there are any) and readout."""
        model, ladder, parts = self.model, self.model.ladder, {}
        p, k, r = model.projection.p, model.projection.k, len(model.directions)
        if ladder is not None:
            taps = "both sets of taps" if len(ladder.sides) > 1 else f"the taps {ladder.sides[0]!r}"
            parts["ladder"] = (
                f"{ladder.width:,} features of {len(ladder.rungs):,} rungs in {taps}, which pool "
                f"{sum(ladder.widths):,} numbers, the network's own features among them"
            )
        if p:
            inside = [entry for entry in self.trained if entry not in SIDES]
            each = f" for each of {r} directions" if model.settings.kernel == "pseudo" else ""
            parts["tangents"] = f"{', '.join(inside)}: {p:,} parameters in {k:,} components{each}"
        return parts | {"readout": f"{self.parameters.W.numel():,} parameters"}

    def scores(self, rows: Iterable[np.ndarray]) -> np.ndarray:
        """Return float64 scores of shape (n, n_classes); -inf for classes without rows."""
        scores = self.model.scores(self.parameters, rows)
        scores[:, self.empty] = -np.inf
        return scores

    def tensors(self) -> dict[str, Tensor]:
        """Return what is published: with the source of the backbone, all that predictions need.

        Returns
        -------
        tensors : dict
            "readout" and "displacement", of the shapes of `Parameters`; "network.NAME" for what the
            source of the backbone does not give (prompts, the "mlp"); "ladder.NAME" for the units and
            the sketch of a ladder, so that nobody needs to draw it again; at the pretrained anchor
            "probe_directions" (V, or the directions of the pseudo kernel); at the fine-tuned one the
            subset's own values under "network.", and nothing of the anchor, which has seen rows
            that may be forgotten.
        """
        model = self.model
        own = {f"network.{name}": tensor for name, tensor in model.own_tensors().items()}
        tensors = {"readout": self.parameters.W, "displacement": self.displacement} | own
        if model.ladder is not None:
            tensors |= {f"ladder.{name}": tensor for name, tensor in model.ladder.tensors().items()}
        if self.settings.anchor == "pretrained":
            return tensors | {"probe_directions": model.directions}
        solved = model.displaced(self.parameters.delta)
        return tensors | {f"network.{name}": value for name, value in solved.items()}

    def digest(self) -> str:
        """Return the fingerprint of `tensors`."""
        return tensors_digest(self.tensors())

    def to_module(self) -> nn.Module:
        """Return the displaced network, or the ladder, with its readout; see the classifier."""
        W = self.parameters.W.clone()
        W[torch.from_numpy(self.empty), -1] = -math.inf
        if self.model.ladder is not None:
            return with_readout(plain_copy(self.model.ladder), W)
        return with_readout(self.model.displaced_copy(self.parameters.delta), W)
