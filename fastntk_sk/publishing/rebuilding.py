"""From the bytes of an adapter to a model: checked first, built afterwards."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.loading import outline
from ..exceptions import (
    BackboneNotFoundError,
    FastNTKError,
    StateFormatError,
    StateMismatchError,
    SubsetError,
    UnknownKeyWarning,
)
from ..settings import Settings
from ..store.private_state import check_tensors
from ..sums.memory import block_sizes, require
from ..tangents.ladder import TENSORS
from ..tangents.linearize import Saved, linearize
from ..tangents.model import LinearizedModel, working_dtype
from ..tangents.subsets import split_ladder
from . import files
from .config import check

_ADVICE = "Load it on a larger machine."
_PLANES = 64  # that an early layer of a network of images makes of one
# what torch, timm and modules raise for a size, an architecture or tensors that they do not take
_UNFIT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_adapter(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the checked configuration of an adapter file, and the tensors that it describes.

    Parameters
    ----------
    data : bytes

    name : str
        Of the file, for messages.

    Raises
    ------
    StateFormatError
        If the file is damaged or forged, or of a newer format.
    """
    tensors, metadata = files.parse_tensors(data, name)
    if not isinstance(metadata.get("config"), str):
        raise StateFormatError(f"{name} holds no configuration: it is no adapter of this library.")
    config = check(files.parse_json(metadata["config"], f"the header of {name}"), name)
    if files.tensors_digest(tensors) != config["tensors"]:
        raise StateFormatError(f"The tensors of {name} were changed after it was saved.")
    expected = {"readout", "displacement"}
    if config["settings"]["anchor"] == "pretrained":
        expected.add("probe_directions")
    if split_ladder(config["settings"]["trainable"])[0]:
        expected |= {f"ladder.{tensor}" for tensor in TENSORS}
    found = {tensor for tensor in tensors if not tensor.startswith("network.")}
    if found != expected:
        raise StateFormatError(
            f"{name}: expected the tensors {sorted(expected)}, got {sorted(found)}. Restore a backup."
        )
    n_classes, settings = len(config["classes"]["values"]), config["settings"]
    W, dtype = tensors["readout"], working_dtype(settings["precision"])
    V = tensors.get("probe_directions", W)
    shaped = W.ndim == 2 and W.shape[1] > 1 and len(W) == n_classes
    if shaped and V is not W:
        shaped = V.ndim == 2 and V.shape[1] > 0
        if settings["kernel"] == "full":
            shaped = shaped and len(V) == (n_classes if settings["n_components"] else 0)
        d = shaped and (tensors["ladder.sizes"].numel() if "ladder.sizes" in tensors else V.shape[1])
        sizes = shaped and block_sizes(settings["kernel"], d, settings["n_components"], len(V))
        shaped = sizes and sizes[0] + 1 == W.shape[1]
    if not shaped or {W.dtype, V.dtype} != {dtype}:
        raise StateFormatError(
            f"{name}: expected readouts of {n_classes} classes in {dtype}, got {tuple(W.shape)} in "
            f"{W.dtype}. Restore a backup."
        )
    _check_widths(config, tensors, name)
    return config, tensors


def _check_widths(config: dict[str, Any], tensors: dict[str, Tensor], name: str) -> None:
    """Check what decides how much is allocated against the size of tensors that are there."""
    settings = config["settings"]
    network = settings["predict_with"] == "network"
    if settings["kernel"] == "pseudo" and (network or settings["anchor"] != "pretrained"):
        raise StateFormatError(f"{name} has a pseudo kernel where there can be none. Restore a backup.")
    if network and "ladder.sizes" in tensors:
        raise StateFormatError(f"{name} displaces a network that a ladder reads. Restore a backup.")
    if settings["kernel"] == "full" and settings["n_components"] > tensors["displacement"].numel():
        raise StateFormatError(f"{name} has more components than parameters. Restore a backup.")
    inputs = config["preprocessing"]
    if (inputs["size"] is None) != (settings["n_features"] is not None):
        raise StateFormatError(f"{name} describes neither images nor vectors. Restore a backup.")


def settings_at_fit(config: dict[str, Any], device: str | None) -> Settings:
    """Return the settings of the fit, on a device of this machine."""
    found = config["settings"]
    settings = Settings(
        **(
            found
            | {"trainable": tuple(found["trainable"]), "device": device or found["device"]}
            | {"image_size": found["image_size"] and tuple(found["image_size"])}
        )
    )
    try:
        torch.empty(0, device=settings.device)
    except (AssertionError, RuntimeError) as error:
        raise StateMismatchError(
            f'Expected a device of this machine, got "{settings.device}". Pass device="cpu".'
        ) from error
    return settings


def build_model(
    config: dict[str, Any],
    settings: Settings,
    backbone: Any,
    network: dict[str, Tensor],
    V: Tensor,
    moved: Tensor | None,
    ladder: dict[str, Tensor],
    learns: bool,
) -> LinearizedModel:
    """Build the network of a configuration around its saved parts.

    Parameters
    ----------
    config : dict
        Of `read_adapter`.

    settings : Settings

    backbone : str, nn.Module, callable or None
        None takes what the configuration names.

    network : dict of str to Tensor

    V : Tensor of shape (C, d)

    moved : Tensor of shape (k,) or None

    ladder : dict of str to Tensor
        Empty where there is none.

    learns : bool
        See `Saved`.

    Raises
    ------
    StateFormatError
        If the configuration names a backbone or a subset that does not exist.

    StateMismatchError
        If the backbone is not the one that was saved.
    """
    inputs, source, units = config["preprocessing"], config["backbone"]["source"], config["units"]
    given = backbone
    backbone = _pinned(source, config["backbone"]["revision"]) if given is None else given
    if backbone is None:
        raise StateMismatchError(
            f"The saved backbone was a module or a callable ({config['backbone']['name']}), which is "
            "not stored. Pass it: backbone=..."
        )
    dtype = working_dtype(settings.precision)
    scales = (units["scale_h"], units["scale_J"], units["position_gap"])
    saved = Saved(network, V, scales, None if moved is None else moved.to(dtype), learns, ladder)
    if backbone == "mlp":
        saved.check_mlp(settings.n_features)
    elif isinstance(backbone, str):
        _check_outline(backbone, config, V)
    elif inputs["size"]:
        n_pixels = 2 * _PLANES * math.prod(inputs["size"])
        n_bytes = n_pixels * dtype.itemsize
        require(n_bytes, f"A pass over images of {inputs['size']} pixels takes", _ADVICE)
    try:
        asked = replace(settings, backbone=backbone if isinstance(backbone, str) else None)
        model = linearize(backbone, None, asked, saved)
    except (BackboneNotFoundError, SubsetError) as error:
        raise StateFormatError(f"What was saved names something that is not here. {error}") from error
    except FastNTKError:
        raise
    except _UNFIT as error:
        raise _cannot_be_built(config, error) from error
    found = model.backbone.digest(model.own_tensors())
    if found != config["backbone"]["digest"]:
        revision = config["backbone"]["revision"]
        raise StateMismatchError(
            f"Expected the weights {config['backbone']['digest']} of backbone "
            f"{config['backbone']['name']!r} ({revision or 'revision unknown'}), got {found}. Pass "
            "backbone=... with the weights that it was learned with."
        )
    if (learns or settings.kernel == "pseudo") and model.projection.digest() != config["projection"]:
        raise StateMismatchError(
            "This version of torch draws another random subspace for the saved seed. Load with the "
            "version that it was saved with; the receipts and the statistics name it."
        )
    if model.ladder is not None and model.ladder.digest() != config["ladder"]:
        raise StateMismatchError(
            f"The rungs of the ladder in backbone {model.backbone.name!r} are not those that were "
            "saved: its blocks lie in other modules here, or give grids of another form. Load with the "
            "versions of timm and fastntk_sk that it was saved with."
        )
    spec = model.backbone.spec
    expected = {key: tuple(v) if isinstance(v, list) else v for key, v in inputs.items()}
    differing = [key for key in vars(spec) if getattr(spec, key) != expected[key]]
    if differing:
        raise StateMismatchError(
            f"The backbone prepares images in another way than when it was learned: {differing}. Load "
            "with the version of timm that was used, or pass backbone=..."
        )
    if given is None:
        model.backbone.name = str(source)
    if source is not None and not (given and source.startswith("local-dir:")):
        # the same weights, wherever they came from this time: others find them where they were
        model.settings = replace(model.settings, backbone=source)
        model.origin = {key: config["backbone"][key] for key in ("base_model", "revision")}
    return model


def _check_outline(backbone: str, config: dict[str, Any], V: Tensor) -> None:
    """Check that a named network fits V and memory, before it is built."""
    size = config["preprocessing"]["size"]
    try:
        found = outline(backbone, tuple(size) if size else None)
    except BackboneNotFoundError as error:
        raise StateFormatError(f"What was saved names something that is not here. {error}") from error
    except FastNTKError:
        raise
    except _UNFIT as error:
        raise _cannot_be_built(config, error) from error
    if found.n_features != V.shape[1]:
        raise StateMismatchError(
            f"Expected a backbone with {V.shape[1]} features, got {found.n_features} from "
            f"{backbone!r:.100}. Pass the backbone that was saved: backbone=..."
        )
    dtype = working_dtype(config["settings"]["precision"])
    n_bytes = found.n_bytes * dtype.itemsize // torch.float32.itemsize
    require(n_bytes, f"Backbone {backbone!r:.100} on images of {size} pixels takes", _ADVICE)


def _cannot_be_built(config: dict[str, Any], error: Exception) -> StateMismatchError:
    return StateMismatchError(
        f"The backbone {config['backbone']['name']!r:.100} cannot be built or run as it was saved "
        f"({type(error).__name__}: {error}). Pass the backbone that was saved: backbone=..."
    )


def _pinned(source: str | None, revision: str | None) -> str | None:
    """Return the source of a backbone at the commit that was recorded, if one was."""
    repository = re.match(r"hf[-_]hub:[^@]+", source or "")
    if repository and re.fullmatch("[0-9a-f]{40}", revision or ""):
        return f"{repository[0]}@{revision}"
    return source


def check_sizes(model: LinearizedModel, tensors: dict[str, Tensor]) -> None:
    """Raise StateFormatError unless readout and displacement are of a model's sizes."""
    W = tensors["readout"]
    found = {name: tensors[name] for name in ("readout", "displacement")}
    expected = {"readout": (len(W), model.sizes[0] + 1), "displacement": (model.n_displaced,)}
    check_tensors(
        found, {name: (model.directions.dtype, shape) for name, shape in expected.items()}, "The adapter"
    )


def unfitted(cls: type, config: dict[str, Any], backbone: Any) -> Any:
    """Return an unfitted estimator with the saved parameters."""
    known = cls._get_param_names()  # type: ignore[attr-defined]
    unknown = sorted(set(config["params"]) - set(known))
    if unknown:
        warnings.warn(
            f"The saved parameters {unknown} are not known to this version and ignored. Upgrade "
            "fastntk_sk to use them.",
            UnknownKeyWarning,
            stacklevel=5,
        )
    params = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config["params"].items()
        if name in known and name != "num_workers"  # a file starts no processes
    }
    if params.get("backbone") is None:
        params["backbone"] = backbone
    classifier = cls(**params)
    if config["settings"]["n_features"] is not None:
        classifier.n_features_in_ = config["settings"]["n_features"]
    if config["feature_names"] is not None:
        names = np.array(config["feature_names"], dtype=object)
        classifier.feature_names_in_ = names
    return classifier
