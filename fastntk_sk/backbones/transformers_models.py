"""Models of Hugging Face transformers: from a repository to features of pictures.

Nothing of a repository is executed or unpickled: its config.json chooses among the classes of
transformers by "model_type", and gives them numbers and texts; weights are safetensors.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ..exceptions import BackboneNotFoundError, WeightsUnavailableError, warn
from . import repositories
from .inputs import InputSpec, sides
from .repositories import Repository

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"(?a)[\w\-]{1,100}\.safetensors")
_SHARDS = 100
# they build what other repositories describe, draw patches at random, or hold a model of texts
_UNSUITED = {"timm_backbone", "timm_wrapper", "vit_mae", "shieldgemma2"}
_KEEP_CLASSIFIER = {"segformer"}  # for any number of classes; the pooled features are the same without
_PARTS = {"backbone_config", "text_config"}  # of models that are more than a network of pictures
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LOADING = threading.Lock()  # what transformers writes is one setting for all threads
# how many tokens stand before those of the patches, registers not counted
_LEADING_TOKENS = {
    "clip_vision_model": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "ijepa": 0,
    "siglip_vision_model": 0,
    "vit": 1,
    "vit_msn": 1,
}


class Tokens(NamedTuple):
    """The blocks of a Vision Transformer, and how the tokens that they take lie.

    `n_leading` class and register tokens stand before those of the patches, of shape `patch`.
    """

    blocks: nn.Sequential | nn.ModuleList
    n_leading: int
    patch: tuple[int, int]
    width: int


class TransformersModel(nn.Module):
    """A model of transformers that returns features of shape (n, d).

    They are what the classifier of an image classifier reads; of other models the pooled output, or the
    mean over tokens or places. `config` is that of its network of pictures, which have the `size`
    (height, width) and, if `flipped`, blue before red.
    """

    def __init__(self, model: nn.Module, config: Any, size: tuple[int, int], flipped: bool) -> None:
        super().__init__()
        self.model, self.config, self.size, self.flipped = model, config, size, flipped
        native = getattr(config, "image_size", None)
        takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        enlarged = takes and native is not None and sides(native) != size
        self._arguments = {"interpolate_pos_encoding": True} if enlarged else {}

    def forward(self, pictures: Tensor) -> Tensor:
        """Map pictures of shape (n, channels, height, width) to features."""
        out = self.model(pictures.flip(1) if self.flipped else pictures, **self._arguments)
        if "logits" in out:
            return out.logits
        pooled = out.get("pooler_output")
        if pooled is not None:
            return pooled.flatten(1)
        last = out.last_hidden_state
        places = {3: (1,), 4: (2, 3)}.get(last.ndim)
        return last if places is None else last.mean(places)

    @property
    def patch(self) -> tuple[int, int] | None:
        """Height and width of the patches that pictures are cut into, where all have one size."""
        patch = getattr(self.config, "patch_size", None)
        return None if patch is None else sides(patch)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches, where all have one size."""
        if self.patch is None:
            return None
        return self.size[0] // self.patch[0], self.size[1] // self.patch[1]

    @property
    def tokens(self) -> Tokens | None:
        """What prompt tokens need to know; None if the model is no plain Vision Transformer."""
        n_leading = _LEADING_TOKENS.get(self.config.model_type)
        if n_leading is None or self.patch is None:
            return None
        n_blocks = self.config.num_hidden_layers
        lists = (m for m in self.modules() if isinstance(m, nn.ModuleList) and len(m) == n_blocks)
        n_leading += getattr(self.config, "num_register_tokens", 0)
        return Tokens(next(lists), n_leading, self.patch, self.config.hidden_size)


def create(
    repository: Repository, pretrained: bool, size: tuple[int, int] | None
) -> tuple[nn.Module, InputSpec]:
    """Build the model of a repository without its classifier.

    Raise BackboneNotFoundError if it is no model of pictures, or too large for any.
    """
    if not isinstance(repository.config.get("model_type"), str):
        raise repository.refused(
            "its config.json names neither an architecture of timm nor a model_type of transformers"
        )
    try:
        from transformers import AutoModel, AutoModelForImageClassification
    except ImportError as error:
        raise WeightsUnavailableError(
            f"{repository.source!r} is a model of transformers, which needs more packages: "
            "pip install 'fastntk_sk[transformers]'."
        ) from error
    config, tower, classifies = _configuration(repository)
    processor = _processor(repository)
    spec = _input_spec(repository, processor, tower, size)
    assert spec.size is not None
    wrap = partial(
        TransformersModel,
        config=tower,
        size=spec.size,
        flipped=bool(processor.get("do_flip_channel_order")),
    )
    build = AutoModelForImageClassification if classifies else AutoModel
    try:
        with torch.device("meta"), repositories.few_modules(repository), torch.no_grad():
            measured = wrap(build.from_config(config, trust_remote_code=False)).eval()
            features = measured(torch.empty(2, spec.channels, *spec.size))
        _, measured.num_features = features.shape
    except BackboneNotFoundError:
        raise
    except Exception as error:  # networks of others raise anything
        raise repository.refused(
            f"a {config.model_type!r} gives no features of pictures of {spec.size} pixels: {error}"
        ) from error
    if measured.patch is not None and any(np.mod(spec.size, measured.patch)):
        raise BackboneNotFoundError(
            f"Expected image_size to be a multiple of the patches of {repository.source!r:.200}, of "
            f"{measured.patch} pixels, got {spec.size}. Pass another image_size=..."
        )
    repositories.check_memory(repository, measured)
    if not pretrained:
        return wrap(build.from_config(config, trust_remote_code=False)), spec
    state = _weights(repository, measured)
    with _quiet():
        kind: Any = type(measured.model)
        model, found = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    if found["missing_keys"]:
        raise WeightsUnavailableError(
            f"Expected weights of a {config.model_type!r} in {repository.source!r}, got those of "
            f"another network, without {', '.join(sorted(found['missing_keys'])[:3])}. Pass another "
            "backbone=..., or pretrained=False for random weights."
        )
    return wrap(model), spec


def _configuration(repository: Repository) -> tuple[Any, Any, bool]:
    """Return the configuration of the model, that of its network of pictures, and whether it classifies.

    The two differ for an image classifier that is part of a model of texts, as of CLIP. Only what
    describes a network is read: precision, attention and code are not for a file to decide.
    """
    import transformers as hf

    given, kind = repository.config, repository.config["model_type"]
    if "quantization_config" in given:
        raise repository.refused("its weights are quantized")
    if kind not in hf.CONFIG_MAPPING:
        raise repository.refused(f"transformers {hf.__version__} knows no model_type {kind!r:.100}")
    outer = cls = hf.CONFIG_MAPPING[kind]
    composite = "vision_config" in inspect.signature(cls).parameters
    named = [name for name in given.get("architectures") or () if isinstance(name, str)]
    if composite:
        given = given.get("vision_config") or {}
        inner = given.get("model_type")
        cls = hf.CONFIG_MAPPING[inner] if inner in hf.CONFIG_MAPPING else type(cls().vision_config)
        classifies = any(name.endswith("ForImageClassification") for name in named)
    else:
        classifies = cls in hf.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and kind not in _KEEP_CLASSIFIER
    tower = kind.endswith("_vision_model")  # of CLIP, say, saved by itself
    others = hf.MODEL_MAPPING if composite or tower else hf.MODEL_FOR_IMAGE_MAPPING
    known = set(inspect.signature(cls).parameters)
    known -= set(inspect.signature(hf.PreTrainedConfig).parameters)
    if not (classifies or cls in others) or {kind, cls.model_type} & _UNSUITED or known & _PARTS:
        raise repository.refused(
            f"its model_type {kind!r} stands for no model of pictures, or for more than one"
        )
    arguments = {name: value for name, value in given.items() if name in known}
    repositories.check_arguments(repository, arguments)
    try:
        config = network = cls(**arguments | {"num_labels": 0})
        if composite and classifies:
            config = outer(vision_config=network, num_labels=0)
    except Exception as error:  # of a wrong type, or anything in __post_init__
        raise repository.refused(
            f"its config.json is no configuration of a {cls.model_type!r}: {error}"
        ) from error
    config.architectures = named  # of several classifiers of a model, as of DeiT, that of the weights
    return config, network, classifies


def _processor(repository: Repository) -> dict[str, Any]:
    """Return what a repository says of how pictures are prepared."""
    given = repository.json("preprocessor_config.json")
    if given is None:
        given = (repository.json("processor_config.json") or {}).get("image_processor")
    if isinstance(given, dict):
        return given
    warn(
        f"{repository.source!r:.200} has no preprocessor_config.json. Pictures are normalised by the "
        "mean and deviation of ImageNet, which its weights may not have been trained with."
    )
    return {"image_mean": _IMAGENET[0], "image_std": _IMAGENET[1]}


def _input_spec(
    repository: Repository, processor: dict[str, Any], config: Any, size: tuple[int, int] | None
) -> InputSpec:
    """Return how a processor prepares pictures, which are resized as a whole to the size it cuts."""
    channels, factor = getattr(config, "num_channels", 3), 255.0
    try:
        if size is None:
            cut = processor.get("crop_size") if processor.get("do_center_crop", True) else None
            resized = processor.get("size") if processor.get("do_resize", True) else None
            size = _size_of(cut or resized or getattr(config, "image_size", None))
        if processor.get("do_rescale", True):
            factor *= processor.get("rescale_factor", 1 / 255)
        mean, std = np.zeros(channels), np.ones(channels)
        if processor.get("do_normalize", "image_mean" in processor):
            mean, std = (
                np.broadcast_to(processor.get(key, default), 3)[:channels]
                for key, default in zip(("image_mean", "image_std"), _IMAGENET, strict=True)
            )
            std = std**2 if processor.get("include_top") else std  # EfficientNet's divides twice
        spec = {
            "size": size,
            "channels": channels,
            "mean": ((mean + bool(processor.get("rescale_offset"))) / factor).tolist(),
            "std": (std / factor).tolist(),
            "interpolation": Image.Resampling(processor.get("resample", 3)).name.lower(),
        }
        found = msgspec.convert(spec, InputSpec)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise repository.refused(f"it does not say how pictures are prepared: {error}") from error
    if min(found.std) <= 0:
        raise repository.refused("its processor divides by a deviation of zero")
    return found


def _size_of(size: Any) -> tuple[int, int]:
    """Return the (height, width) that a processor or a configuration means."""
    if isinstance(size, dict):
        size = size.get("shortest_edge", size.get("longest_edge")) or (size["height"], size["width"])
    if size is None:
        raise ValueError("they have no size, which image_size=... gives")
    return sides(size)


def _weights(repository: Repository, measured: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the safetensors files of a repository."""
    n_classes = repository.config.get("id2label")
    check = partial(
        repositories.check_download,
        repository,
        net=measured,
        n_classes=len(n_classes) if isinstance(n_classes, dict) else None,
    )
    check([_WEIGHTS])
    file = repository.file(_WEIGHTS)
    if file is not None:
        return load_file(file)
    index = repository.json(_INDEX)
    if index is None:
        raise WeightsUnavailableError(
            f"Expected {_WEIGHTS} in {repository.source!r}, got none. A pytorch_model.bin is a pickle, "
            "which is not opened: where you trust it, load it with transformers, save_pretrained, and "
            "pass that folder as 'local-dir:PATH'. pretrained=False gives random weights."
        )
    shards = sorted(set(index["weight_map"].values()))
    if len(shards) > _SHARDS or not all(_SHARD.fullmatch(name) for name in shards):
        raise repository.refused(f"its {_INDEX} names files that are no parts of weights")
    check(shards)
    state: dict[str, Tensor] = {}
    for name in shards:
        part = repository.file(name)
        if part is None:
            raise FileNotFoundError(f"there is no file {name!r}.")
        state |= load_file(part)
    return state


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing about weights that are not read, as those of the classifier."""
    from transformers.utils import logging

    with _LOADING:
        level = logging.get_verbosity()
        logging.set_verbosity_error()
        hook = logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **kwargs | {"disable": True}))
        try:
            yield
        finally:
            logging.set_verbosity(level)
            logging.set_tqdm_hook(hook)
