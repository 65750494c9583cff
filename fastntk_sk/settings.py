"""The settings of a fit, as they were resolved then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Parameters of the estimator as they were at fit; `set_params` does not reach them.

    Parameters
    ----------
    seed : int
        Drawn from `random_state`.

    n_classes : int

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

    searched_by : tuple of str
        Searches that chose parameters with the rows, such as "FastNTKClassifierCV".

    anchor, kernel, n_directions, tangent_scale, target_scale, n_prompts, image_size, pretrained, \
batch_size, predict_with, precision, device, backbone_has_seen
        As the parameters of the classifier, without "auto".
    """

    seed: int
    n_classes: int
    n_features: int | None
    backbone: str | None
    trainable: tuple[str, ...]
    anchor: str
    kernel: str
    n_directions: int
    n_components: int | str | None
    n_prompts: int
    image_size: tuple[int, int] | None
    pretrained: bool
    batch_size: int
    precision: str
    device: str
    alpha: float | None
    tangent_scale: float
    target_scale: float
    predict_with: str
    backbone_has_seen: bool | str = False
    searched_by: tuple[str, ...] = ()

    @property
    def is_finetuned(self) -> bool:
        """Whether SGD has moved the anchor, which has then seen the rows."""
        return self.anchor == "finetuned"
