"""Models of torchvision by name: "torchvision:NAME", or "torchvision:NAME.WEIGHTS"."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..exceptions import BackboneNotFoundError, WeightsUnavailableError, did_you_mean
from .inputs import InputSpec

PREFIX = "torchvision:"
# their pretrained forms transform the input in a way that InputSpec cannot express; timm has both
_UNSUITED = {"googlenet", "inception_v3"}


def create(name: str, pretrained: bool, size: tuple[int, int] | None) -> tuple[nn.Module, InputSpec]:
    """Build a classification model of torchvision without its last linear layer.

    `name` has no prefix, but may have the name of the weights, as in "resnet50.IMAGENET1K_V1". The size
    of pictures, mean, deviation and interpolation are those of the pretrained weights.
    """
    from torchvision import models

    wanted, name = name, name.partition(".")[0]
    names = set(models.list_models(module=models)) - _UNSUITED
    if name not in names:
        hint = did_you_mean(name, names)
        raise BackboneNotFoundError(
            f"Expected a classification model of torchvision, got {name!r}.{hint} "
            "torchvision.models.list_models(module=torchvision.models) lists the names."
        )
    weights = weights_of(wanted)
    preset = weights.transforms()
    size = size or (preset.crop_size[0], preset.crop_size[0])
    sized: dict[str, Any] = {}
    if name.startswith("vit_"):
        if size[0] != size[1]:
            raise BackboneNotFoundError(
                f"Expected a square image_size for {PREFIX + name!r}, got {size}. Pass one number."
            )
        sized = {"image_size": size[0]}
    net = models.get_model(name, weights=None, **sized)
    if pretrained:
        try:
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
            net.load_state_dict(state)
        except (OSError, RuntimeError) as error:
            raise WeightsUnavailableError(
                f"The pretrained weights of {PREFIX + name!r} cannot be loaded here: {error} To go on: "
                "check the connection, leave image_size out for a transformer, or pass pretrained=False "
                "for random ones."
            ) from error
    heads = [part for part, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not heads or heads[-1].split(".")[0] != list(net._modules)[-1]:
        raise BackboneNotFoundError(
            f"Expected a model whose last layer is linear, got {PREFIX + name!r}. Pass an nn.Module "
            "that returns features."
        )
    net.set_submodule(heads[-1], nn.Identity())
    mean, std = tuple(preset.mean), tuple(preset.std)
    return net, InputSpec(size, 3, mean, std, preset.interpolation.value)


def weights_of(name: str) -> Any:
    """Return torchvision's description of the weights that a name without its prefix stands for."""
    from torchvision.models import get_model_weights

    architecture, _, tag = name.partition(".")
    known = get_model_weights(architecture)
    if tag and tag not in known.__members__:
        raise BackboneNotFoundError(
            f"Expected one of the pretrained weights {list(known.__members__)}, got {tag!r}."
        )
    return known[tag] if tag else known.DEFAULT
