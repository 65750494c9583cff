"""The public half of a fitted estimator: what predicts, and nothing that describes rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..settings import Settings
from ..tangents.lora import merge_lora
from ..tangents.mirror import Mirrored
from ..tangents.model import LinearizedModel, Parameters
from ..tangents.rungs import SIDES
from ..wording import counted
from .exactness import exactness_text
from .exports import with_readout
from .files import tensors_checksum

LINEAR_IS_EXACT = (
    "A readout alone, of a ladder or of the network's last features, is linear in its parameters, so "
    "that the model itself is exact, not only its linearisation."
)


@dataclass(frozen=True)
class Adapter:
    """What a fitted estimator publishes.

    `displacement` is theta - theta_0, of shape (p,), or (0,) for the pseudo kernel; `empty` a mask of
    the classes without rows, which are never predicted; `exactness` that of all deletions together; and
    `heads` the checksum of the last receipt of each chain, by its name.
    """

    model: LinearizedModel
    parameters: Parameters
    displacement: Tensor
    empty: np.ndarray
    n_learned: int
    classes: np.ndarray
    n_forgotten: int = 0
    exactness: dict[str, Any] = field(default_factory=lambda: {"exact": True, "reasons": []})
    heads: dict[str, str] = field(default_factory=dict)

    def after(self, **deletions: Any) -> Adapter:
        """Return the adapter with what is said of deletions; its tensors are the same."""
        changed = replace(self, **deletions)
        changed.__dict__["checksum"] = self.checksum  # of the same tensors: computed once
        return changed

    @property
    def settings(self) -> Settings:
        """Settings of the fit."""
        return self.model.settings

    @property
    def sharpness(self) -> float:
        """What turns scores into a softmax, by multiplication."""
        return self.settings.sharpness

    @property
    def trained(self) -> list[str]:
        """Sides of a ladder, subsets of the network, or "head" where there is neither."""
        entries = self.settings.trainable
        return [entry for entry in entries if entry != "head"] or ["head"]

    @property
    def is_linear(self) -> bool:
        """Whether a readout is all that was learned."""
        return not self.model.projection.p

    def exactness_text(self, exactness: Mapping[str, Any]) -> str:
        """Return the exactness of one deletion, or of several, of this model in words."""
        return exactness_text(exactness, is_linear=self.is_linear)

    def summary(self) -> dict[str, str]:
        """Return in words what was learned and forgotten, for a table."""
        model, ladder = self.model, self.model.ladder
        exact = self.exactness_text(self.exactness)
        parts = {
            "learned": counted(self.n_learned, "row"),
            "forgotten": counted(self.n_forgotten, "row"),
            "deletions": exact if any(self.heads.values()) else "none yet",
            "anchor": self.settings.anchor,
            "kernel": self.settings.kernel,
        }
        if self.settings.augment == "flip":
            parts["pictures"] = "each averaged with its mirror image"
        p, k, r = model.projection.p, model.projection.k, len(model.directions)
        if ladder is not None:
            taps = "both sets of taps" if len(ladder.sides) > 1 else f"the taps {ladder.sides[0]!r}"
            parts["ladder"] = (
                f"{ladder.width:,} features of {len(ladder.rungs):,} rungs in {taps}, which pool "
                f"{sum(ladder.widths):,} numbers, the network's own features among them"
            )
        if p:
            inside = [entry for entry in self.trained if entry not in SIDES]
            each = f" for each of {r} directions" if self.settings.kernel == "pseudo" else ""
            parts["tangents"] = f"{', '.join(inside)}: {p:,} parameters in {k:,} components{each}"
        return parts | {"readout": f"{self.parameters.W.numel():,} parameters"}

    def scores(self, rows: Iterable[np.ndarray]) -> np.ndarray:
        """Return float64 scores of shape (n, n_classes); -inf for classes without rows."""
        scores = self.model.scores(self.parameters, rows)
        scores[:, self.empty] = -np.inf
        return scores

    def tensors(self) -> dict[str, Tensor]:
        """Return what is published: with the source of the backbone, all that predictions need.

        They are "readout" and "displacement", of the shapes of `Parameters`; "network.NAME" for what
        the source of the backbone does not give (prompts, the "mlp"); "ladder.NAME" for the scales and
        the sketch of a ladder. At the pretrained anchor "probe_directions" (V) is added; at another the
        solved values of the subset, and nothing of what SGD left, which has seen rows that may be
        forgotten.
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

    @cached_property
    def checksum(self) -> str:
        """Checksum of `tensors`."""
        return tensors_checksum(self.tensors())

    def to_module(self, *, merged: bool = True) -> nn.Module:
        """Return the displaced network, or the ladder, with its readout.

        LoRA is `merged` into the weights, or stays beside them.
        """
        W = self.parameters.W.clone()
        W[torch.from_numpy(self.empty), -1] = -math.inf
        W = W.to(self.model.device)
        if self.model.ladder is not None:
            module = with_readout(copy.deepcopy(self.model.ladder), W)
        else:
            net = self.model.displaced_copy(self.parameters.delta)
            if merged:
                merge_lora(net)
            module = with_readout(net, W, self.settings.head)
        return Mirrored(module).eval() if self.settings.augment == "flip" else module
