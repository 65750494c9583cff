"""From a backbone name, factory or module to a frozen network and its preprocessing."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..exceptions import BackboneNotFoundError, FastNTKError, WeightsUnavailableError, did_you_mean
from ..randomness import generator
from . import modules, outputs, repositories, torchvision_models, transformers_models
from .inputs import InputSpec, sides
from .kinds import as_array
from .packaged_weights import find_weights, load_efficientnet_lite
from .recipes import find_recipe, import_quietly, list_recipes, source_of

_MLP_WIDTH = 256
_BUILDING = threading.RLock()  # while the generator and the default dtype of the process are others
_KEPT = 3  # memory for checking Jacobians, in activations of one row; measured: 2.4
_LIVE = 16  # memory for predictions, in largest activations of a row; measured: 7 to 17


@dataclass
class Backbone:
    """A frozen network in eval mode: (n, channels, height, width) or (n, f) to features (n, d)."""

    net: nn.Module
    spec: InputSpec
    name: str  # for messages, receipts and saved states

    def synthetic(self, n: int, seed: int, n_features: int | None, dtype: torch.dtype) -> Tensor:
        """Return inputs (n, ...) that hold no data: N(0, 1) noise, of length `n_features` for vectors.

        Noise for images is drawn at one eighth of the resolution and enlarged bilinearly, because white
        noise has a tenth of the energy of pictures in a network's features.
        """
        draws = generator(seed, "synthetic")
        if self.spec.size is None:
            return torch.randn(n, n_features or 1, generator=draws, dtype=torch.float64).to(dtype)
        height, width = self.spec.size
        shape = (n, self.spec.channels, -(-height // 8), -(-width // 8))
        coarse = torch.randn(shape, generator=draws, dtype=torch.float32)
        smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        return smooth.to(dtype).contiguous(memory_format=torch.channels_last)

    def probe(self, seed: int, n_features: int | None, dtype: torch.dtype, device: Any) -> Tensor:
        """Return two synthetic inputs, in grey from now on where the network takes only those."""

        def draw(spec: InputSpec) -> Tensor:
            return replace(self, spec=spec).synthetic(2, seed, n_features, dtype).to(device)

        self.spec = for_channels(self.net, self.spec, draw)
        return draw(self.spec)

    def digest(self, without: Iterable[str] = ()) -> str:
        """Return a checksum of weights and buffers, without those of some names."""
        left_out = set(without)
        state = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.net.state_dict().items()):
            if name in left_out or not isinstance(tensor, Tensor):  # such as an extra state
                continue
            state.update(name.encode())
            state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return state.hexdigest()


def load_backbone(
    backbone: str | nn.Module | Callable[[], nn.Module],
    *,
    pretrained: bool = True,
    image_size: int | tuple[int, int] | None = None,
    n_features: int | None = None,
    seed: int = 0,
    keep_classifier: bool = False,
) -> Backbone:
    """Build a frozen backbone; random weights depend on `seed`.

    `backbone` is a recipe or timm name, "timm:NAME", "torchvision:NAME", "hf-hub:ORG/NAME[@REVISION]" or
    "local-dir:PATH" (of timm or transformers), or "mlp"; a module that returns features, which is copied
    (a timm module loses its classifier, unless `keep_classifier` is set, and what `torch.compile` or
    `DataParallel` put around a network stays away); or a factory of one. Without `image_size` pictures
    have the size that the weights were trained at; a module that does not state one needs it.
    `n_features` is the length of input vectors; None stands for pictures.
    """
    if backbone == "mlp":
        net, spec = _mlp(n_features or 1, seed), InputSpec()
    elif isinstance(backbone, str):
        net, spec = _named(backbone, pretrained, pair(image_size), seed)
    else:
        with _seeded(seed):
            given = backbone if isinstance(backbone, nn.Module) else backbone()
        if not isinstance(given, nn.Module):
            raise BackboneNotFoundError(
                "Expected backbone to be a name, an nn.Module or a callable that returns one, got "
                f"{type(given).__name__}."
            )
        net = modules.own_copy(given)
        if hasattr(net, "pretrained_cfg") and hasattr(net, "reset_classifier"):
            if not keep_classifier:
                net.reset_classifier(0)  # type: ignore[operator]
            spec = _timm_spec(net, pair(image_size))
        elif n_features is not None:
            spec = InputSpec()
        else:
            size = pair(image_size)
            if size is None:  # that of the rows would be published, and stay when they are forgotten
                raise ValueError(
                    f"Expected image_size with a {type(net).__name__} as backbone, which states no size "
                    "of its input, got None. Pass image_size=..., such as 224 or (height, width)."
                )
            spec = InputSpec(size, 3, (0.0,) * 3, (1.0,) * 3, "bilinear")
    net.requires_grad_(False).eval()
    name = backbone if isinstance(backbone, str) else type(net).__name__
    for tensor in itertools.chain(net.parameters(), net.buffers()):
        if tensor.ndim == 4:  # `Module.to` fails on weights of five dimensions
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return Backbone(net, spec, name)


def origin(backbone: Backbone, source: Any, pretrained: bool) -> dict[str, str | None]:
    """Return where weights came from, as far as it is known without a connection.

    "base_model" is a repository of the Hub; "revision" is its commit, or the version of the package that
    ships the weights.
    """
    if not isinstance(source, str) or source == "mlp" or source.startswith("local-dir:"):
        return {"base_model": None, "revision": None}
    if not pretrained:
        return {"base_model": None, "revision": "random weights"}
    named = source_of(source)
    if named.startswith(torchvision_models.PREFIX):
        weights = torchvision_models.weights_of(named.removeprefix(torchvision_models.PREFIX))
        return {"base_model": None, "revision": str(weights)}
    base: str | None
    revision: str | None = None
    if repositories.is_repository(named):
        base, _, revision = named[len("hf-hub:") :].partition("@")
    else:
        base = (getattr(backbone.net, "pretrained_cfg", None) or {}).get("hf_hub_id")
    recipe = find_recipe(source)
    package = recipe.weights_package if recipe else None
    if package and find_weights(package):
        return {"base_model": base, "revision": f"{package} {version(package)}"}
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "config.json", "pytorch_model.bin"):
        cached = try_to_load_from_cache(base, name, revision=revision or None) if base else None
        if isinstance(cached, str):
            revision = Path(cached).parent.name
            break
    return {"base_model": base, "revision": revision or None}


def has_not_seen(backbone: Any, pretrained: bool) -> bool:
    """Return whether the makers of a backbone's weights cannot have seen the user's rows.

    True for random weights by name, and for published weights of timm and torchvision.
    """
    if not isinstance(backbone, str):
        return False
    source = source_of(backbone)
    published = ":" not in source or source.startswith(("timm:", "torchvision:", "hf-hub:timm/"))
    return published or not pretrained


def takes_vectors(backbone: Any, X: Any) -> bool:
    """Return whether a backbone takes X as a 2-D array of plain features."""
    if isinstance(backbone, str):
        return backbone == "mlp"
    if hasattr(backbone, "pretrained_cfg") or len(getattr(X, "shape", ())) != 2:
        return False
    X = as_array(X) if isinstance(X, Tensor) else X
    return hasattr(X, "__array__") and np.asarray(X).dtype.kind in "buif"


def pair(size: Any) -> tuple[int, int] | None:
    """Return a size as (height, width), and None as None."""
    return None if size is None else sides(size)


def _timm_spec(net: nn.Module, size: tuple[int, int] | None) -> InputSpec:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(net)
    channels, *native = config["input_size"]
    return InputSpec(
        size or (native[0], native[1]),
        channels,
        tuple(config["mean"][:channels]),
        tuple(config["std"][:channels]),
        config["interpolation"],
    )


def preprocessing(name: str, size: tuple[int, int] | None) -> InputSpec:
    """Return how a named network, other than "mlp", takes pictures, from its outline without memory."""
    with torch.device("meta"):
        return _named(name, False, size, 0)[1]


def for_channels(net: nn.Module, spec: InputSpec, draw: Callable[[InputSpec], Tensor]) -> InputSpec:
    """Return a description of pictures in grey where a network takes only those, else as it is.

    `draw` gives a batch. Mean and deviation are averaged over the colours.
    """
    if spec.size is None or spec.channels == 1 or outputs.takes(net, draw(spec)):
        return spec
    mean, std = (sum(each) / len(each) for each in (spec.mean, spec.std))
    grey = replace(spec, channels=1, mean=(mean,), std=(std,))
    return grey if outputs.takes(net, draw(grey)) else spec


class Outline(NamedTuple):
    """The width of a network's features, and its size in float32.

    `n_bytes` are for building it and checking its Jacobians, `row_bytes` for each row of a prediction.
    """

    n_features: int
    n_bytes: int
    row_bytes: int


def outline(name: str, size: tuple[int, int] | None) -> Outline:
    """Measure a named network, other than "mlp", on torch's meta device, which allocates no memory."""
    with torch.device("meta"):
        net, spec = _named(name, False, size, 0)
        net.eval()

        def draw(spec: InputSpec) -> Tensor:
            assert spec.size is not None
            return torch.empty(1, spec.channels, *spec.size)

        picture = draw(for_channels(net, spec, draw))
    with torch.no_grad():
        with outputs.activations(net) as numbers:
            out = net(picture)
        features = outputs.find_features(net, out, picture.shape, name)(net, (), out)
    weights = sum(tensor.numel() for tensor in net.state_dict().values())
    n_bytes = torch.float32.itemsize * (weights + _KEPT * sum(numbers))
    return Outline(features.shape[-1], n_bytes, torch.float32.itemsize * _LIVE * max(numbers, default=0))


def _named(
    name: str, pretrained: bool, size: tuple[int, int] | None, seed: int
) -> tuple[nn.Module, InputSpec]:
    source = source_of(name)
    with _seeded(seed):
        if source.startswith(torchvision_models.PREFIX):
            model = source.removeprefix(torchvision_models.PREFIX)
            return torchvision_models.create(model, pretrained, size)
        source = source.removeprefix("timm:")
        if ":" not in source:
            net = _registered(name, source, pretrained, size)
            return net, _timm_spec(net, size)
        try:
            return _described(source, pretrained, size)
        except FastNTKError:
            raise
        except Exception as error:  # the Hub, files and networks of others raise anything
            raise _unavailable(name, error) from error


def _registered(name: str, source: str, pretrained: bool, size: tuple[int, int] | None) -> nn.Module:
    """Build a network that timm knows by name."""
    timm = import_quietly("timm")
    recipe = find_recipe(name)
    package = recipe.weights_package if recipe else None
    architecture = source.split(".")[0]
    if not timm.is_model(architecture):
        hint = did_you_mean(name, list_recipes() + timm.list_models())
        raise BackboneNotFoundError(
            "Expected a recipe, a timm model, 'hf-hub:ORG/NAME' or 'local-dir:PATH' as backbone, "
            f"got {name!r}.{hint} list_recipes() and timm.list_models() list the names."
        )
    try:
        config = timm.get_pretrained_cfg(source, allow_unregistered=False)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{architecture}.*")
        raise BackboneNotFoundError(
            f"Expected one of the pretrained weights {tags}, got {name!r}."
        ) from error
    sized = size if config.fixed_input_size else None
    packaged = find_weights(package) if pretrained and package else None
    if packaged is not None:
        net = timm.create_model(source, pretrained=False)
        load_efficientnet_lite(net, packaged)
        net.reset_classifier(0)
        return net
    try:
        return _create(source, pretrained, sized)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise _unavailable(name, error, f"pip install {package}, " if package else "") from error


def _described(
    source: str, pretrained: bool, size: tuple[int, int] | None
) -> tuple[nn.Module, InputSpec]:
    """Build what a repository or a folder describes: a network of timm, or of transformers."""
    repository = repositories.opened(source)
    if "architecture" not in repository.config:
        return transformers_models.create(repository, pretrained, size)
    weights = repositories.check_timm(repository)
    with torch.device("meta"), repositories.few_modules(repository):
        measured = _create(repository.source, False, size)
    repositories.check_memory(repository, measured)
    if pretrained:
        files = repositories.timm_files(weights)
        repositories.check_download(repository, files, measured, weights.get("num_classes"))
    net = _create(repository.source, pretrained, size)
    return net, _timm_spec(net, size)


def _create(source: str, pretrained: bool, size: tuple[int, int] | None) -> nn.Module:
    """Build a network of timm without its classifier."""
    create = partial(import_quietly("timm").create_model, source, pretrained=pretrained, num_classes=0)
    if size is None:
        return create()
    try:
        return create(img_size=size)
    except TypeError:  # an architecture without a fixed input size
        return create()


def _unavailable(name: str, error: Exception, install: str = "") -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"The pretrained weights of {name!r} cannot be loaded here: {error} To go on: {install}check "
        "the connection, pass a 'local-dir:PATH' that holds the weights, or pretrained=False for random "
        "ones."
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed random initial weights, in float32; restore the generator and the dtype of the process."""
    with _BUILDING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, "weights").initial_seed())
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(usual)


class _RowScale(nn.Module):
    """Divide each row by sqrt(1 + mean square), a rule that depends on no data."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.square().mean(dim=1, keepdim=True)).sqrt()


def _mlp(n_features: int, seed: int) -> nn.Module:
    """Return a random network on vectors, in float64 for a deletion that is exact to rounding."""
    sizes = (n_features, _MLP_WIDTH)
    layers = [skip_init(nn.Linear, n, _MLP_WIDTH, dtype=torch.float32) for n in sizes]
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
