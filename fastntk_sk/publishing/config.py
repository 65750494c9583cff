"""The configuration of a published adapter: written from an estimator, and checked when it is read."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta, Struct
from torch import nn

from ..backbones.inputs import InputSpec
from ..backbones.recipes import portable
from ..exceptions import StateFormatError, UnsavedParameterWarning, warn
from ..settings import Settings
from ..sums.memory import require
from ..tangents.model import LinearizedModel
from .adapter import Adapter
from .files import canonical, check_checksum, convert, with_checksum

FORMAT = 1
ELSEWHERE = ("backbone", "num_workers")  # the source has its own place; a file starts no processes
OWNERS = ("finetune_params", "keep")  # left out of what is published, and not taken from it
_BACKBONE = (
    r"(?a)\A(mlp|(timm:|torchvision:)?[\w.\-]{1,200}|local-dir:.{1,4000}"
    r"|hf[\-_]hub:(?!.*\.\.)\w[\w.\-/]{0,200}(@\w[\w.\-/]{0,200})?)\Z"
)
_MAX = 2**53  # up to which every integer is a float too
Source = Annotated[str, Meta(pattern=_BACKBONE)]
Checksum = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Count = Annotated[int, Meta(ge=0, le=_MAX)]
RowCount = Annotated[int, Meta(ge=1, le=_MAX)]
Size = Annotated[float, Meta(ge=1e-150, le=1e300)]


class Exactness(Struct):
    """How exact deletions were; see `exactness.exactness`."""

    exact: bool
    reasons: list[str]


class BackboneSource(Struct):
    """Where a backbone comes from, and the checksum of its weights."""

    source: Source | None
    name: str
    base_model: Annotated[str, Meta(pattern=r"(?a)\A[\w.\-/]{1,200}\Z")] | None
    revision: Annotated[str, Meta(pattern=r"(?a)\A[\w.\-+/ ]{1,200}\Z")] | None
    checksum: Checksum


class Units(Struct):
    """What a model measures on synthetic inputs."""

    scale_h: Size
    scale_J: Size
    position_gap: Annotated[float, Meta(ge=0, le=1e300)]


class Classes(Struct):
    """`classes_` as plain values, and the kind of its dtype."""

    values: Annotated[list[str | int | float | bool | None], Meta(min_length=2)]
    kind: Annotated[str, Meta(pattern=r"\A([OU]|[<>|][biuf][1248])\Z")]

    def labels(self) -> np.ndarray:
        """Return `classes_`, or raise StateFormatError."""
        if self.kind == "U":  # numpy makes every text as long as the longest
            longest = max(len(str(value)) for value in self.values)
            require(4 * longest * len(self.values), "The class labels take", "They look forged.")
        try:
            labels = np.array(self.values, dtype=self.kind)
        except (TypeError, ValueError, OverflowError) as error:
            raise StateFormatError(
                f"Expected class labels of kind {self.kind}, got others: {error}."
            ) from error
        found = labels.tolist()
        if found != self.values or len(set(map(repr, found))) < len(found):
            raise StateFormatError(
                f"Expected different class labels of kind {self.kind}, got others. Restore a backup."
            )
        return labels


class Config(Struct, kw_only=True):
    """What `config.json` and the header of `adapter.safetensors` hold."""

    format: int
    version: str
    params: dict[str, Any]
    settings: Settings
    backbone: BackboneSource
    tensors_checksum: Checksum
    preprocessing: InputSpec
    projection: Checksum
    ladder: Checksum | None
    units: Units
    classes: Classes
    without_rows: list[Count]
    feature_names: list[str] | None
    n_samples_learned: RowCount
    n_samples_forgotten: Count
    exactness: Exactness
    receipts: dict[
        Annotated[str, Meta(max_length=64)], Annotated[str, Meta(pattern=r"\A([0-9a-f]{32})?\Z")]
    ]
    checksum: Checksum


def describe(adapter: Adapter, classifier: Any, *, public: bool) -> dict[str, Any]:
    """Return the configuration of a fitted estimator as `Config` reads it, with its checksum.

    `public` leaves out what belongs to this machine and its owner: the device, paths, `finetune_params`,
    which may hold some, and `keep`. Raise StateFormatError if class labels are no plain values.
    """
    model, settings = adapter.model, adapter.settings
    source = None if settings.backbone is None else portable(settings.backbone)
    params = _plain_params(classifier, settings.seed)
    here: dict[str, Any] = {"backbone": None}
    if public:
        source = _public(source)
        params = {name: value for name, value in params.items() if name not in OWNERS}
        here |= {"device": "cpu", "keep": None}
        params["device"] = "cpu"
    names = getattr(classifier, "feature_names_in_", None)
    classes = classifier.classes_
    config = with_checksum(
        {
            "format": FORMAT,
            "version": version("fastntk_sk"),
            "params": params,
            "settings": asdict(settings) | here,
            "backbone": {
                "source": source,
                "name": public_name(model) if public else model.backbone.name,
                **model.origin,
                "checksum": model.backbone.digest(model.own_tensors()),
            },
            "tensors_checksum": adapter.checksum,
            "preprocessing": asdict(model.backbone.spec),
            "projection": model.projection.digest(),
            "ladder": None if model.ladder is None else model.ladder.digest(),
            "units": {name: getattr(model, name) for name in Units.__struct_fields__},
            "classes": {
                "values": classes.tolist(),
                "kind": classes.dtype.kind if classes.dtype.kind in "OU" else classes.dtype.str,
            },
            "without_rows": np.flatnonzero(adapter.empty).tolist(),
            "feature_names": None if names is None else names.tolist(),
            "n_samples_learned": adapter.n_learned,
            "n_samples_forgotten": adapter.n_forgotten,
            "exactness": adapter.exactness,
            "receipts": adapter.heads,
        }
    )
    check(config, "The configuration")
    return config


def _plain_params(classifier: Any, seed: int) -> dict[str, Any]:
    """Return the parameters that JSON can hold, and warn of the others."""
    kept: dict[str, Any] = {}
    lost = []
    for name, value in classifier.get_params(deep=False).items():
        if name in ELSEWHERE or isinstance(value, nn.Module):
            continue
        if name == "random_state" and not isinstance(value, (int, np.integer, type(None))):
            value = seed
        elif hasattr(value, "tolist"):  # arrays and numbers of numpy
            value = value.tolist()
        elif isinstance(value, torch.device):
            value = str(value)
        try:
            canonical({name: value})
            kept[name] = value
        except StateFormatError:
            lost.append(name)
    if lost:
        warn(
            f"The parameters {lost} are or hold objects that JSON cannot hold, and are not saved. A "
            "loaded estimator predicts and unlearns the same; set them again before another fit.",
            UnsavedParameterWarning,
        )
    return kept


def public_name(model: LinearizedModel) -> str:
    """Return the name of a backbone, or of its architecture if it was a folder of this machine."""
    if _public(model.backbone.name) is not None:
        return model.backbone.name
    net = model.backbone.net
    return (getattr(net, "pretrained_cfg", None) or {}).get("architecture") or type(net).__name__


def _public(source: str | None) -> str | None:
    return None if source is None or source.startswith("local-dir:") else source


def check(document: dict[str, Any], name: str) -> Config:
    """Return a configuration that can be relied on; `name` is that of the file, for messages.

    Raise StateFormatError if its format is another, its checksum does not fit, or a value is missing or
    wrong; warn of keys that this version does not know.
    """
    check_intact(document, name)
    config = convert(document, Config, name)
    settings, n_classes = config.settings, len(config.classes.labels())
    contradictions = {
        "settings.n_classes": settings.n_classes != n_classes,
        "settings.head": (settings.head is None) == (settings.anchor == "trained"),
        "settings.n_components": not isinstance(settings.n_components, int),
        "settings.augment": bool(settings.augment and settings.n_features),
        "preprocessing.size": (config.preprocessing.size is None) != (settings.n_features is not None),
        "feature_names": len(config.feature_names or ()) not in (0, settings.n_features),
        "without_rows": not set(config.without_rows) < set(range(n_classes)),
    }
    wrong = [key for key, holds in contradictions.items() if holds]
    if wrong:
        raise StateFormatError(f"{name} contradicts itself in {wrong}. Restore a backup.")
    return config


def check_intact(document: dict[str, Any], name: str) -> None:
    """Raise StateFormatError unless a document has a known format and was not changed since."""
    found = document.get("format")
    if type(found) is not int or found != FORMAT:
        raise StateFormatError(
            f"Expected format {FORMAT} in {name}, got {found!r:.100} written by fastntk_sk "
            f"{document.get('version')!s:.100}. Upgrade fastntk_sk."
        )
    check_checksum(document, name)
