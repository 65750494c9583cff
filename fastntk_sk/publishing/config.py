"""The configuration of a published adapter: written from an estimator, and checked when it is read."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from ..backbones.inputs import MAX_SIDE
from ..backbones.recipes import portable
from ..exceptions import StateFormatError, UnsavedParameterWarning
from ..tangents.model import LinearizedModel
from .adapter import Adapter
from .files import canonical, check_signed, parse_json, signed
from .schema import MAX_INTEGER, integer, list_of, number, one_of, optional, section, text

FORMAT = 1
_FORBIDDEN = {"trust_remote_code", "auto_map", "custom_code"}
_PART = r"\w(\w|\.(?!\.)|-(?!-)){0,95}(?<![.\-])"  # of the name of a repository, as the Hub allows it
_BACKBONE = re.compile(
    rf"mlp|(timm:|torchvision:)?[\w.\-]{{1,200}}|hf[\-_]hub:({_PART}/)?{_PART}(@(?!.*\.\.)\w[\w.\-/]{{0,199}})?|"
    r"local-dir:.{1,4000}",
    re.ASCII,
)
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")
_HEX = re.compile(r"[0-9a-f]{32}")


def describe(adapter: Adapter, classifier: Any, *, public: bool) -> dict[str, Any]:
    """Return the configuration of a fitted estimator, signed.

    Parameters
    ----------
    adapter : Adapter

    classifier : FastNTKClassifier
        For its parameters, classes and column names.

    public : bool
        Leave out what belongs to this machine: its device, paths, and `finetune_params`, which may
        hold some.

    Returns
    -------
    config : dict
        What JSON can hold.

    Raises
    ------
    StateFormatError
        If class labels or a parameter are no plain values.

    Warns
    -----
    UnsavedParameterWarning
        If `finetune_params` holds objects: it is stored as None.
    """
    model, settings = adapter.model, adapter.settings
    params = classifier.get_params(deep=False)
    del params["num_workers"]  # says how this machine reads, not what the model is
    source = settings.backbone
    source, params["backbone"] = (
        portable(name) if isinstance(name, str) else name for name in (source, params["backbone"])
    )
    if public:
        params |= {"finetune_params": None, "device": "cpu"}
        params["backbone"] = _public(params["backbone"])
        source = _public(source)
    if not _NAME(params["backbone"]):
        params["backbone"] = None
    if not isinstance(params["random_state"], (int, np.integer, type(None))):
        params["random_state"] = settings.seed
    try:
        canonical(params["finetune_params"])
    except StateFormatError:
        warnings.warn(
            "finetune_params holds objects that JSON cannot, and is saved as None. A loaded estimator "
            "predicts and unlearns the same; set the parameter again before another fit.",
            UnsavedParameterWarning,
            stacklevel=4,
        )
        params["finetune_params"] = None
    spec = model.backbone.spec
    names = getattr(classifier, "feature_names_in_", None)
    classes = classifier.classes_
    config = {
        "format": FORMAT,
        "version": version("fastntk_sk"),
        "params": params,
        "settings": asdict(replace(settings, backbone=None)) | ({"device": "cpu"} if public else {}),
        "backbone": {
            "source": source,
            "name": public_name(model) if public else model.backbone.name,
            **model.origin,
            "digest": model.backbone.digest(model.own_tensors()),
        },
        "tensors": adapter.digest(),
        "preprocessing": asdict(spec),
        "projection": model.projection.digest(),
        "ladder": None if model.ladder is None else model.ladder.digest(),
        "units": {
            "scale_h": model.scale_h,
            "scale_J": model.scale_J,
            "position_gap": model.position_gap,
        },
        "classes": {"values": classes.tolist(), "kind": _kind(classes)},
        "without_rows": np.flatnonzero(adapter.empty).tolist(),
        "feature_names": None if names is None else names.tolist(),
        "n_samples_learned": adapter.n_learned,
        "n_samples_forgotten": adapter.n_forgotten,
        "exactness": adapter.exactness,
        "receipts": adapter.heads,
    }
    config = signed(config)
    check(parse_json(canonical(config), "the configuration"), "The configuration")
    return config


def public_name(model: LinearizedModel) -> str:
    """Return the name of a backbone, or of its architecture if it was a folder of this machine."""
    if _public(model.backbone.name) is not None:
        return model.backbone.name
    net = model.backbone.net
    return (getattr(net, "pretrained_cfg", None) or {}).get("architecture") or type(net).__name__


def _public(source: Any) -> Any:
    return None if isinstance(source, str) and source.startswith("local-dir:") else source


def check(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration that can be relied on, or raise an error that names what is wrong.

    Parameters
    ----------
    document : dict
        As it was read, with its digest.

    name : str
        Of the file, for messages.

    Returns
    -------
    config : dict

    Raises
    ------
    StateFormatError
        If its format is newer, its digest does not fit, a value is missing or not of its kind, or it
        asks for code to be run.

    Warns
    -----
    UnknownKeyWarning
        If there are keys that this version does not know.
    """
    checked = section(intact(document, name), _SCHEMA, name)
    labels, empty = class_labels(checked), set(checked["without_rows"])
    if any(c >= len(labels) for c in empty) or len(empty) == len(labels):
        raise StateFormatError(
            f"{name} names classes without rows that it does not list, or all that it lists. Restore "
            "a backup."
        )
    columns, n_features = checked["feature_names"], checked["settings"]["n_features"]
    if columns is not None and len(columns) != n_features:
        raise StateFormatError(
            f"Expected the names of {n_features} features in {name}, got {len(columns)}. Restore a "
            "backup."
        )
    return checked


def intact(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what was signed: of a format that is known, not changed since, and asking for no code."""
    found = document.get("format")
    if type(found) is not int or found < 1:
        raise StateFormatError(f"Expected an integer format in {name}, got {found!r:.100}.")
    if found > FORMAT:
        raise StateFormatError(
            f"Expected format {FORMAT} or older in {name}, got {found} written by fastntk_sk "
            f"{document.get('version')!s:.100}. Upgrade fastntk_sk."
        )
    rest = check_signed(document, name)
    _forbid_code(rest, name)
    return rest


def class_labels(config: dict[str, Any]) -> np.ndarray:
    """Return `classes_`."""
    values, kind = config["classes"]["values"], config["classes"]["kind"]
    lengths = [len(value) for value in values if isinstance(value, str)]
    if kind == "U" and len(lengths) < len(values):
        raise StateFormatError("Expected class labels to be text, got others. Restore a backup.")
    if kind == "U" and len(values) * max(lengths) > 16 * sum(lengths) + 2**20:
        raise StateFormatError("One class label is out of proportion to the others. Restore a backup.")
    try:
        labels = np.array(values, dtype=kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise StateFormatError(f"Expected class labels of kind {kind}, got others: {error}.") from error
    if labels.tolist() != values:
        raise StateFormatError(f"Expected class labels of kind {kind}, got others. Restore a backup.")
    if len(set(map(repr, labels.tolist()))) < len(labels):
        raise StateFormatError("Expected different class labels, got one twice. Restore a backup.")
    return labels


def _kind(classes: np.ndarray) -> str:
    return classes.dtype.kind if classes.dtype.kind in "OU" else classes.dtype.str


def _forbid_code(value: Any, name: str) -> None:
    asked = sorted(_FORBIDDEN & value.keys()) if isinstance(value, dict) else []
    if asked:
        raise StateFormatError(
            f"{name} asks for code to be run ({asked[0]!r}), which this library never does. Do not "
            "use the file."
        )
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            _forbid_code(part, name)


def _label(value: Any) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return value is None or (isinstance(value, (str, int, float, bool)) and finite)


_FLAG = one_of(True, False)
_NAME = text(_BACKBONE)
_SIDES = list_of(integer(1, MAX_SIDE), 2, 2)
_COLOURS = list_of(lambda value: type(value) in (int, float) and abs(value) < 1e6, 1, 4)
_SCHEMA: dict[str, Any] = {
    "format": integer(1, FORMAT),
    "params": lambda value: isinstance(value, dict) and optional(_NAME)(value.get("backbone")),
    "settings": {
        "seed": integer(0, 2**31),
        "n_classes": integer(2, 10**6),
        "n_features": optional(integer(1, 10**6)),
        "backbone": one_of(None),
        "trainable": list_of(text(length=200), 1, 1000),
        "anchor": one_of("pretrained", "finetuned"),
        "kernel": one_of("full", "pseudo"),
        "n_directions": integer(1, 10**6),
        "n_components": integer(0, 10**9),
        "n_prompts": integer(1, 10**4),
        "image_size": optional(_SIDES),
        "pretrained": _FLAG,
        "batch_size": integer(1, 10**6),
        "precision": one_of("float32", "float64", "bfloat16"),
        "device": text(_DEVICE),
        "alpha": optional(number(5e-324)),
        "tangent_scale": number(0),
        "target_scale": number(5e-324),
        "predict_with": one_of("linear", "network"),
    },
    "backbone": {
        "source": optional(_NAME),
        "name": text(),
        "base_model": optional(text()),
        "revision": optional(text()),
        "digest": text(_HEX),
    },
    "tensors": text(_HEX),
    "preprocessing": {
        "size": optional(_SIDES),
        "channels": one_of(1, 3),
        "mean": _COLOURS,
        "std": _COLOURS,
        "interpolation": text(),
    },
    "projection": text(_HEX),
    "ladder": optional(text(_HEX)),
    "units": {
        "scale_h": number(1e-150),
        "scale_J": number(1e-150),
        "position_gap": number(0),
    },
    "classes": {
        "values": list_of(_label, 2),
        "kind": text(re.compile(r"[OU]|[<>|][biuf][1248]")),
    },
    "without_rows": list_of(integer(0, 10**6)),
    "feature_names": optional(list_of(text())),
    "n_samples_learned": integer(1, MAX_INTEGER),
    "n_samples_forgotten": integer(0, MAX_INTEGER),
    "exactness": list_of(text(length=10**5)),
    "receipts": list_of(text(_HEX)),
}
