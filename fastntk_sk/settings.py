"""The settings of a fit, as they were resolved then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from msgspec import Meta

MAX_BATCH = 2**16
Side = Annotated[int, Meta(ge=1, le=4096)]
Scale = Annotated[float, Meta(gt=0, le=1e300)]


@dataclass(frozen=True)
class Settings:
    """Parameters of the estimator as they were at fit; `set_params` does not reach them.

    `linearize` is given them as they were asked for, `trainable` and `n_components` perhaps "auto", and
    returns a model that holds them resolved. Constraints are those of a saved file; nothing checks them
    when an instance is made.

    Parameters
    ----------
    seed : int
        Drawn from `random_state`.

    n_classes : int
        C.

    n_features : int or None
        Length of input vectors; None for pictures.

    backbone : str or None
        The name that was passed; None for a module or a callable.

    trainable : tuple of str
        Sides of a ladder and entries within the network.

    n_components : int
        k, of the tangents.

    alpha : float or None
        None: the sums choose it.

    target_scale : float
        With "auto" at a fine-tuned anchor, the margin that SGD left.

    searched_by : tuple of str
        Searches that chose parameters with the rows, such as "FastNTKClassifierCV".

    anchor, kernel, n_directions, tangent_scale, n_prompts, image_size, pretrained, \
batch_size, predict_with, precision, device, backbone_has_seen
        As the parameters of the classifier, without "auto".
    """

    seed: Annotated[int, Meta(ge=0, le=2**31)]
    n_classes: Annotated[int, Meta(ge=2, le=10**6)]
    n_features: Annotated[int, Meta(ge=1, le=10**6)] | None
    backbone: str | None
    trainable: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1000)]
    anchor: Literal["pretrained", "finetuned"]
    kernel: Literal["full", "pseudo"]
    n_directions: Annotated[int, Meta(ge=1, le=10**6)]
    n_components: Annotated[int, Meta(ge=0, le=10**9)] | Literal["auto"] | None
    n_prompts: Annotated[int, Meta(ge=1, le=10**4)]
    image_size: tuple[Side, Side] | None
    pretrained: bool
    batch_size: Annotated[int, Meta(ge=1, le=MAX_BATCH)]
    precision: Literal["float32", "float64", "bfloat16"]
    device: Annotated[str, Meta(pattern=r"\A(cpu|cuda|mps|xpu)(:\d{1,3})?\Z")]
    alpha: Scale | None
    tangent_scale: Annotated[float, Meta(ge=0, le=1e300)]
    target_scale: Scale
    predict_with: Literal["linear", "network"]
    backbone_has_seen: bool | Literal["unknown"]
    searched_by: tuple[str, ...]

    @property
    def is_finetuned(self) -> bool:
        """Whether SGD has moved the anchor, which has then seen the rows."""
        return self.anchor == "finetuned"

    def merged(self, other: Settings) -> Settings:
        """Return the settings with all that is known, in either, to have seen rows."""
        seen = {self.backbone_has_seen, other.backbone_has_seen}
        worst: bool | Literal["unknown"] = (
            True if True in seen else "unknown" if len(seen) > 1 else (self.backbone_has_seen)
        )
        searched_by = tuple(dict.fromkeys((*self.searched_by, *other.searched_by)))
        return replace(self, backbone_has_seen=worst, searched_by=searched_by)
