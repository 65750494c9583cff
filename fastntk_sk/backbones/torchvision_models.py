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

    name, _, tag = name.partition(".")
    names = set(models.list_models(module=models)) - _UNSUITED
    if name not in names:
        hint = did_you_mean(name, names)
        raise BackboneNotFoundError(
            f"Expected a classification model of torchvision, got {name!r}.{hint} "
            "torchvision.models.list_models(module=torchvision.models) lists the names."
        )
    weights = _weights(name, tag)
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


def revision(name: str) -> str:
    """Return torchvision's name of the weights that a name with its prefix stands for."""
    return str(_weights(*name.removeprefix(PREFIX).partition(".")[::2]))


def native_size(name: str) -> int:
    """Return the side of the pictures of the pretrained weights; `name` has no prefix."""
    return _weights(*name.partition(".")[::2]).transforms().crop_size[0]


def _weights(name: str, tag: str) -> Any:
    from torchvision.models import get_model_weights

    known = get_model_weights(name)
    if tag and tag not in known.__members__:
        raise BackboneNotFoundError(
            f"Expected one of the pretrained weights {list(known.__members__)}, got {tag!r}."
        )
    return known[tag] if tag else known.DEFAULT
