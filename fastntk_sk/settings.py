"""The settings of a fit, as they were resolved then."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from msgspec import Meta

MAX_BATCH = 2**16
CALIBRATION = "calibrate"  # among what `searched_by` names
MAX_SCALE = 1e30  # squares of larger ones, and scores in float32, overflow
Side = Annotated[int, Meta(ge=1, le=4096)]
Scale = Annotated[float, Meta(gt=0, le=MAX_SCALE)]


@dataclass(frozen=True)
class Settings:
    """Parameters of the estimator as they were at fit; `set_params` does not reach them.

    `linearize` takes them with `trainable`, `n_components` and `batch_size` perhaps "auto", and returns
    a model that holds them resolved. The constraints are those of a saved file; nothing checks them in
    memory.
    """

    seed: Annotated[int, Meta(ge=0, le=2**31)]  # drawn from random_state
    n_classes: Annotated[int, Meta(ge=2, le=10**6)]
    n_features: Annotated[int, Meta(ge=1, le=10**6)] | None  # None for pictures
    backbone: str | None  # None for a module or a callable
    trainable: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1000)]
    anchor: Literal["pretrained", "finetuned", "trained"]  # "trained": a module of the user's
    head: Annotated[str, Meta(max_length=1000)] | None  # the classifier in that module
    kernel: Literal["full", "pseudo"]
    n_directions: Annotated[int, Meta(ge=1, le=10**6)]
    n_components: Annotated[int, Meta(ge=0, le=10**9)] | Literal["auto"] | None
    n_prompts: Annotated[int, Meta(ge=1, le=10**4)]
    lora_rank: Annotated[int, Meta(ge=1, le=10**4)]
    image_size: tuple[Side, Side] | None
    pretrained: bool
    batch_size: Annotated[int, Meta(ge=1, le=MAX_BATCH)]
    precision: Literal["float32", "float64", "bfloat16"]
    device: Annotated[str, Meta(pattern=r"\A(cpu|cuda|mps|xpu)(:\d{1,3})?\Z")]
    alpha: Scale | None  # None: the sums choose it
    tangent_scale: Annotated[float, Meta(ge=0, le=MAX_SCALE)]
    target_scale: Scale  # of "auto" at an anchor that has seen the rows, the margin there
    predict_with: Literal["linear", "network"]
    backbone_has_seen: bool | Literal["unknown"]
    keep: Literal["features"] | None
    augment: Literal["flip"] | None  # None for vectors
    searched_by: tuple[str, ...]  # searches and calibrations that chose parameters with the rows
    temperature: Scale | None  # of predict_proba, from leave-one-out scores; None: the fixed rule

    @property
    def anchor_has_seen(self) -> bool:
        """Whether the rows have trained the anchor: by SGD here, or elsewhere by their owner."""
        return self.anchor != "pretrained"

    @property
    def needs_anchor(self) -> bool:
        """Whether predictions need weights that have seen the rows, and are private therefore."""
        return self.anchor == "trained" or (self.anchor_has_seen and self.predict_with == "linear")

    @property
    def sharpness(self) -> float:
        r"""What multiplies scores in a softmax: :math:`\log(99 (C - 1)) / target\_scale`, or 1 / T."""
        if self.temperature is not None:
            return 1 / self.temperature
        return math.log(99 * (self.n_classes - 1)) / self.target_scale

    def merged(self, other: Settings) -> Settings:
        """Return the settings with all that is known, in either, to have seen rows; not calibrated."""
        known = self.backbone_has_seen, other.backbone_has_seen
        worst = max(known, key=(False, "unknown", True).index)
        names = dict.fromkeys((*self.searched_by, *other.searched_by))
        searched_by = tuple(name for name in names if name != CALIBRATION)
        return replace(self, backbone_has_seen=worst, searched_by=searched_by, temperature=None)
