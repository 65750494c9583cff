"""From the bytes of an adapter to a model: checked first, built afterwards."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.inputs import check_device
from ..backbones.loading import outline
from ..backbones.trained import take_apart
from ..exceptions import (
    BackboneError,
    FastNTKError,
    StateFormatError,
    StateMismatchError,
    UnknownKeyWarning,
    warn,
)
from ..settings import Settings
from ..sums.memory import available_memory, block_sizes, require
from ..tangents.ladder import TENSORS
from ..tangents.linearize import Saved, linearize
from ..tangents.model import LinearizedModel, working_dtype
from ..tangents.subsets import split_ladder
from . import files
from .config import ELSEWHERE, Config, check

_ADVICE = "Load it on a larger machine."
_PLANES = 64  # that an early layer of a network of images makes of one


def read_adapter(data: bytes, name: str) -> tuple[Config, dict[str, Tensor]]:
    """Return the checked configuration of an adapter file, and the tensors that it describes."""
    tensors, metadata = files.parse_tensors(data, name)
    if "config" not in metadata:
        raise StateFormatError(f"{name} holds no configuration: it is no adapter of this library.")
    config = check(files.parse_json(metadata["config"], f"the header of {name}"), name)
    if files.tensors_checksum(tensors) != config.tensors_checksum:
        raise StateFormatError(f"The tensors of {name} were changed after it was saved.")
    settings = config.settings
    expected = {"readout", "displacement"}
    if not settings.anchor_has_seen:
        expected.add("probe_directions")
    if split_ladder(settings.trainable)[0]:
        expected |= {f"ladder.{tensor}" for tensor in TENSORS}
    found = {tensor for tensor in tensors if not tensor.startswith("network.")}
    if found != expected:
        raise StateFormatError(
            f"{name}: expected the tensors {sorted(expected)}, got {sorted(found)}. Restore a backup."
        )
    if not _sizes_fit(settings, tensors):
        W = tensors["readout"]
        raise StateFormatError(
            f"{name}: its tensors do not fit its settings, a readout of {tuple(W.shape)} in {W.dtype} "
            "among them. Restore a backup."
        )
    return config, tensors


def _sizes_fit(settings: Settings, tensors: dict[str, Tensor]) -> bool:
    """Check what decides how much is allocated against the size of tensors that are there."""
    W, full, k = tensors["readout"], settings.kernel == "full", settings.n_components
    V = tensors.get("probe_directions", W)
    assert isinstance(k, int)
    if W.ndim != 2 or W.shape[1] < 2 or len(W) != settings.n_classes or V.ndim != 2 or V.shape[1] < 1:
        return False
    if {W.dtype, V.dtype} != {working_dtype(settings.precision)}:
        return False
    if settings.predict_with == "network" and (not full or "ladder.sizes" in tensors):
        return False
    if settings.anchor_has_seen and not full:
        return False
    if full and k > tensors["displacement"].numel():
        return False
    if V is not W and full and len(V) != (settings.n_classes if k else 0):
        return False
    d = tensors["ladder.sizes"].numel() if "ladder.sizes" in tensors else V.shape[1] - (V is W)
    return block_sizes(settings.kernel, d, k, len(V))[0] + 1 == W.shape[1]


def settings_at_fit(config: Config, device: str | None) -> Settings:
    """Return the settings of the fit, on a device of this machine."""
    settings = replace(config.settings, device=str(device or config.settings.device))
    try:
        check_device(settings.device)
    except ValueError as error:
        raise StateMismatchError(str(error)) from error
    return settings


def build_model(
    config: Config,
    settings: Settings,
    backbone: Any,
    tensors: dict[str, Tensor],
    V: Tensor,
    moved: Tensor | None,
    learns: bool,
) -> LinearizedModel:
    """Build the network of a configuration around its saved parts.

    V has shape (C, d), `moved` (k,), or None at the pretrained anchor; of `tensors`, "network.NAME" and
    "ladder.NAME" are read. `backbone=None` takes what the configuration names; `learns` is that of
    `Saved`. Raise StateMismatchError if the backbone is not the one that was saved.
    """
    source, units = config.backbone.source, config.units
    given = backbone
    backbone = _pinned(source, config.backbone.revision) if given is None else given
    trained = settings.anchor == "trained"
    if backbone is None or (trained and not isinstance(given, nn.Module)):
        raise StateMismatchError(
            f"The saved backbone was a module or a callable ({config.backbone.name}), which is "
            "not stored. Pass it: backbone=..."
        )
    dtype = working_dtype(settings.precision)
    saved = Saved(
        files.under(tensors, "network."),
        V,
        (units.scale_h, units.scale_J, units.position_gap),
        None if moved is None else moved.to(dtype),
        learns,
        files.under(tensors, "ladder."),
    )
    try:
        row_bytes = _check_size(backbone, config, saved)
        if row_bytes and not learns:  # no sums depend on how many rows of a public adapter are in a pass
            fitting = max(1, int(min(available_memory() // row_bytes, settings.batch_size)))
            settings = replace(settings, batch_size=fitting)
        if trained:
            settings = replace(settings, backbone=source)  # which says how pictures are prepared
            backbone = take_apart(backbone, settings, dtype).features
        else:
            settings = replace(settings, backbone=backbone if isinstance(backbone, str) else None)
        model = linearize(backbone, settings, saved)
    except ImportError:
        raise
    except Exception as error:  # modules raise anything where they are not copied or built as before
        if isinstance(error, FastNTKError) and not isinstance(error, BackboneError):
            raise
        raise StateMismatchError(
            f"The backbone {config.backbone.name!r:.100} cannot be built or run as it was saved "
            f"({type(error).__name__}: {error}). Pass the backbone that was saved: backbone=..."
        ) from error
    _check_same(model, config, learns)
    if given is None:
        model.backbone.name = str(source)
    if source is not None and not (given and source.startswith("local-dir:")):
        # the same weights, wherever they came from this time: others find them where they were
        model.settings = replace(model.settings, backbone=source)
        model.origin = {
            "base_model": config.backbone.base_model,
            "revision": config.backbone.revision,
        }
    return model


def _check_same(model: LinearizedModel, config: Config, learns: bool) -> None:
    """Raise StateMismatchError unless a model is made of what was saved."""
    found = model.backbone.digest(model.own_tensors())
    if found != config.backbone.checksum:
        raise StateMismatchError(
            f"Expected the weights {config.backbone.checksum} of backbone {config.backbone.name!r} "
            f"({config.backbone.revision or 'revision unknown'}), got {found}. Pass backbone=... with "
            "the weights that it was learned with, in the version of timm or transformers that was used."
        )
    random = learns or config.settings.kernel == "pseudo"
    if random and model.projection.digest() != config.projection:
        raise StateMismatchError(
            "This version of torch draws another random subspace for the saved seed. Load with the "
            "version that it was saved with; the receipts and the statistics name it."
        )
    if model.ladder is not None and model.ladder.digest() != config.ladder:
        raise StateMismatchError(
            f"The rungs of the ladder in backbone {model.backbone.name!r} are not those that were "
            "saved: its blocks lie in other modules here, or give grids of another form. Load with the "
            "versions of timm or transformers and of fastntk_sk that it was saved with."
        )
    if model.backbone.spec != config.preprocessing:
        raise StateMismatchError(
            f"The backbone prepares images as {model.backbone.spec}, and did as {config.preprocessing} "
            "when it was learned. Load with the version of timm or transformers that was used, or pass "
            "backbone=..."
        )


def _check_size(backbone: Any, config: Config, saved: Saved) -> int:
    """Check that a backbone fits V and memory, before it is built; return bytes for a row of a pass."""
    size, V = config.preprocessing.size, saved.directions
    if backbone == "mlp":
        saved.check_mlp(config.settings.n_features)
    elif isinstance(backbone, str):
        n_features, n_bytes, row_bytes = outline(backbone, size)
        if n_features != V.shape[1]:
            raise StateMismatchError(
                f"Expected a backbone with {V.shape[1]} features, got {n_features} from "
                f"{backbone!r:.100}. Pass the backbone that was saved: backbone=..."
            )
        larger = V.itemsize // torch.float32.itemsize or 1
        require(
            n_bytes * larger, f"Backbone {backbone!r:.100} on images of {size} pixels takes", _ADVICE
        )
        return row_bytes * larger
    elif size:
        n_bytes = 2 * _PLANES * math.prod(size) * V.itemsize
        require(n_bytes, f"A pass over images of {size} pixels takes", _ADVICE)
        return n_bytes
    return 0


def _pinned(source: str | None, revision: str | None) -> str | None:
    """Return the source of a backbone at the commit that was recorded, if one was."""
    repository = re.match(r"hf[-_]hub:[^@]+", source or "")
    if repository and re.fullmatch("[0-9a-f]{40}", revision or ""):
        return f"{repository[0]}@{revision}"
    return source


def check_sizes(model: LinearizedModel, tensors: dict[str, Tensor]) -> None:
    """Raise StateFormatError unless readout and displacement are of a model's sizes."""
    dtype, W = model.directions.dtype, tensors["readout"]
    expected = {
        "readout": (dtype, (len(W), model.sizes[0] + 1)),
        "displacement": (dtype, (model.n_displaced,)),
    }
    files.check_tensors({name: tensors[name] for name in expected}, expected, "The adapter")


def unfitted(cls: type, config: Config, backbone: Any) -> Any:
    """Return an unfitted estimator with the saved parameters."""
    known = cls._get_param_names()  # type: ignore[attr-defined]
    unknown = sorted(set(config.params) - set(known))
    if unknown:
        warn(
            f"The saved parameters {unknown} are not known to this version and ignored. Upgrade "
            "fastntk_sk to use them.",
            UnknownKeyWarning,
        )
    params = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.params.items()
        if name in known and name not in ELSEWHERE
    }
    source = config.backbone.source
    if config.settings.anchor == "trained":
        params |= {"anchor": backbone} | ({} if source is None else {"backbone": source})
    else:
        named = source is not None and not (backbone and source.startswith("local-dir:"))
        params["backbone"] = source if named else backbone
    classifier = cls(**params)
    if config.settings.n_features is not None:
        classifier.n_features_in_ = config.settings.n_features
    if config.feature_names is not None:
        classifier.feature_names_in_ = np.array(config.feature_names, dtype=object)
    return classifier
