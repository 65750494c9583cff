"""A fitted estimator as a folder of JSON and safetensors.

Data files carry their digest in their name; `manifest.json` names them and is replaced in one
instant, after everything that it names is on disk. Whenever a save is interrupted, the folder holds
the old state or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import warnings
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from .backbones import check_digest
from .exceptions import StateFormatError, StateMismatchError, UnsavedParameterWarning
from .ledger import Entry, Ledger, Segment
from .linearized import LinearizedModel, Parameters
from .state import Frozen, State
from .statistics import Statistics

FORMAT = 1
_MANIFEST = "manifest.json"
_PATTERNS = ("model-*.safetensors", "private-*.safetensors", "private-*.json", "*.partial")


def save(classifier: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted classifier; see :meth:`FastNTKClassifier.save`.

    Parameters
    ----------
    classifier : FastNTKClassifier

    path : str or path-like
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _holds(folder))):
        raise StateFormatError(
            f"Expected {str(folder)!r} to be a new or empty folder, or one that holds a saved state; "
            "it holds something else. Choose another folder."
        )
    state: State = classifier._state
    model, private = _tensors(state)
    description, records = _description(classifier), _json(_records(state))
    _json(description)  # what JSON cannot hold is an error before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "model": _write(folder, "model", "safetensors", dump_tensors(model)),
        "statistics": _write(folder, "private", "safetensors", dump_tensors(private)),
        "records": _write(folder, "private", "json", records),
    }
    manifest = {"format": FORMAT, "version": version("fastntk_sk"), "files": files} | description
    manifest["digest"] = _digest(_json(manifest))
    _replace(folder, _MANIFEST, _json(manifest))
    for pattern in _PATTERNS:
        for old in folder.glob(pattern):
            if old.name not in files.values():
                old.unlink()


def load(cls: type, path: str | os.PathLike[str], *, backbone: Any, device: str | None) -> Any:
    """Read what `save` wrote; see :meth:`FastNTKClassifier.load`.

    Parameters
    ----------
    cls : type
        FastNTKClassifier or a subclass.

    path : str or path-like

    backbone : str, nn.Module, callable or None

    device : str or None

    Returns
    -------
    classifier : FastNTKClassifier
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    content = {name: _read(folder, file) for name, file in manifest["files"].items()}
    tensors, private = load_tensors(content["model"]), load_tensors(content["statistics"])
    anchored = private if "moved" in private else tensors
    records = json.loads(content["records"])
    setup, params = manifest["setup"], manifest["params"]
    backbone = setup["backbone"] if backbone is None else backbone
    if backbone is None:
        raise StateMismatchError(
            "The saved backbone was a module or a callable, which is not stored. Pass it: "
            "FastNTKClassifier.load(path, backbone=...)."
        )
    if params["backbone"] is None:
        params["backbone"] = backbone
    classifier = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in params.items()})
    frozen = Frozen(**(manifest["frozen"] | ({} if device is None else {"device": device})))
    classes = np.array(manifest["classes"], dtype=manifest["classes_dtype"])
    dtype = getattr(torch, setup["precision"])
    model = LinearizedModel.build(
        backbone,
        None,
        n_classes=len(classes),
        trainable=setup["trainable"],
        n_prompts=setup["n_prompts"],
        n_components=setup["n_components"],
        pretrained=setup["pretrained"],
        image_size=tuple(setup["image_size"]) if setup["image_size"] else None,
        batch_size=setup["batch_size"],
        n_features=setup["n_features"],
        dtype=dtype,
        device=frozen.device,
        seed=frozen.seed,
        network={n[8:]: t for n, t in anchored.items() if n.startswith("network.")},
        units=(setup["scale_h"], setup["scale_J"], setup["position_gap"]),
        readout=anchored["readout"],
        moved=private.get("moved"),
    )
    check_digest(model.backbone, setup["backbone_digest"])
    if model.projection.digest() != setup["projection_digest"]:
        raise StateMismatchError(
            "This version of torch draws another random subspace for the saved seed. Load with the "
            f"version of the saved state: {records['environment']['versions']['torch']}."
        )
    probes = [private.pop(name) for name in sorted(private) if name.startswith("probe.")]
    classifier._commit(
        State(
            model,
            frozen,
            Statistics.from_tensors(private, 1 / model.scale_h),
            _ledger(private),
            np.array(records["class_rows"], dtype=np.int64),
            Parameters(tensors["W"], private.get("delta", tensors["displacement"])),
            records["environment"],
            probes,
            records["n_forgotten"],
            records["receipts"],
            records["residual"],
            records["seconds_per_row"],
            records["seconds_per_solve"],
            sgd=Parameters(private["sgd"], torch.zeros_like(private["delta"]))
            if "sgd" in private
            else None,
            history=records["history"],
            linearity=records["linearity"],
        ),
        classes,
    )
    if setup["n_features"] is not None:
        classifier.n_features_in_ = setup["n_features"]
    if manifest["feature_names"] is not None:
        classifier.feature_names_in_ = np.array(manifest["feature_names"], dtype=object)
    return classifier


def _description(classifier: Any) -> dict[str, Any]:
    state: State = classifier._state
    model = state.model
    params = classifier.get_params(deep=False)
    if not isinstance(params["backbone"], str):
        params["backbone"] = None
    try:
        _json(params["finetune_params"])
    except (StateFormatError, ValueError):
        warnings.warn(
            "finetune_params holds objects that JSON cannot, and is saved as None. A loaded estimator "
            "predicts and unlearns the same; set the parameter again before another fit.",
            UnsavedParameterWarning,
            stacklevel=4,
        )
        params["finetune_params"] = None
    if not isinstance(params["random_state"], (int, np.integer, type(None))):
        params["random_state"] = state.frozen.seed
    classes = classifier.classes_
    names = getattr(classifier, "feature_names_in_", None)
    return {
        "params": params,
        "frozen": asdict(state.frozen),
        "classes": classes.tolist(),
        "classes_dtype": "O" if classes.dtype == object else classes.dtype.str,
        "feature_names": None if names is None else names.tolist(),
        "setup": {
            **model.setup,
            "backbone_digest": model.backbone.digest(),
            "n_components": model.projection.k,
            "n_features": model.n_features,
            "projection_digest": model.projection.digest(),
            "batch_size": model.batch_size,
            "precision": str(model.readout.dtype).removeprefix("torch."),
            "scale_h": model.scale_h,
            "scale_J": model.scale_J,
            "position_gap": model.position_gap,
        },
    }


def _tensors(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what predicts, and what describes training data: statistics, ledger, a tuned anchor."""
    model = {"W": state.parameters.W, "displacement": state.model.displacement(state.parameters)}
    anchored = {
        "readout": state.model.readout.cpu(),
        **{f"network.{n}": t.cpu() for n, t in state.model.own_tensors().items()},
    }
    probes = {f"probe.{i:04}": probe for i, probe in enumerate(state.probes)}
    private = state.statistics.tensors() | probes
    if state.model.moved is None:
        model |= anchored
    else:  # SGD has seen rows that may be forgotten by now
        assert state.sgd is not None
        private |= anchored | {"moved": state.model.moved, "delta": state.parameters.delta}
        private["sgd"] = state.sgd.W
    for i, segment in enumerate(state.ledger.segments):
        lines = [(d, e, n) for d, entries in segment.rows.items() for e, n in entries.items()]
        empty = bytes(len(segment.key))
        private |= {
            f"ledger.{i}.key": _bytes([segment.key]),
            f"ledger.{i}.digest": _bytes([digest for digest, _, _ in lines]),
            f"ledger.{i}.owner": _bytes([entry.owner or empty for _, entry, _ in lines]),
            f"ledger.{i}.owned": torch.tensor([bool(e.owner) for _, e, _ in lines]),
            f"ledger.{i}.label": torch.tensor([e.label for _, e, _ in lines], dtype=torch.int64),
            f"ledger.{i}.weight": torch.tensor([e.weight for _, e, _ in lines], dtype=torch.float64),
            f"ledger.{i}.count": torch.tensor([n for _, _, n in lines], dtype=torch.int64),
        }
    return _contiguous(model), _contiguous(private)


def _ledger(tensors: dict[str, Tensor]) -> Ledger:
    segments: list[Segment] = []
    while f"ledger.{len(segments)}.key" in tensors:
        prefix = f"ledger.{len(segments)}."
        parts = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
        segment = Segment(parts["key"].numpy().tobytes())
        for i in range(len(parts["label"])):
            owner = parts["owner"][i].numpy().tobytes() if parts["owned"][i] else b""
            entry = Entry(int(parts["label"][i]), float(parts["weight"][i]), owner)
            entries = segment.rows.setdefault(parts["digest"][i].numpy().tobytes(), Counter())
            entries[entry] = int(parts["count"][i])
        segments.append(segment)
    return Ledger(segments)


def _bytes(rows: list[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), -1)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _records(state: State) -> dict[str, Any]:
    return {
        "class_rows": state.class_rows.tolist(),
        "environment": state.environment,
        "n_forgotten": state.n_forgotten,
        "receipts": state.receipts,
        "residual": state.residual,
        "seconds_per_row": state.seconds_per_row,
        "seconds_per_solve": state.seconds_per_solve,
        "history": state.history,
        "linearity": state.linearity,
    }


def _json(value: Any) -> bytes:
    def plain(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        raise StateFormatError(
            f"Expected plain values in the estimator's parameters, got {type(item).__name__}. Use "
            "strings, numbers or tuples."
        )

    return json.dumps(value, sort_keys=True, indent=1, default=plain).encode()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _write(folder: Path, stem: str, ending: str, data: bytes) -> str:
    name = f"{stem}-{_digest(data)}.{ending}"
    if not (folder / name).exists():
        _replace(folder, name, data)
    return name


def _replace(folder: Path, name: str, data: bytes) -> None:
    """Put a file in place in one instant, readable by its owner only, and make it durable."""
    partial = folder / f"{secrets.token_hex(8)}.partial"
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / name)
    if os.name == "posix":
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def _holds(folder: Path) -> bool:
    """Return whether every file is one that a save, complete or interrupted, leaves."""
    return all(
        file.name == _MANIFEST or any(file.match(pattern) for pattern in _PATTERNS)
        for file in folder.iterdir()
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
    except FileNotFoundError:
        raise StateFormatError(
            f"No {_MANIFEST} in {str(folder)!r}. Pass the folder that save() wrote."
        ) from None
    except ValueError as error:
        raise StateFormatError(f"{_MANIFEST} is damaged: {error}. Restore a backup.") from error
    if manifest.get("format", 0) > FORMAT:
        raise StateFormatError(
            f"Expected format {FORMAT} or older, got {manifest['format']} written by fastntk_sk "
            f"{manifest.get('version')}. Upgrade fastntk_sk."
        )
    if manifest.pop("digest", None) != _digest(_json(manifest)):
        raise StateFormatError(f"{_MANIFEST} was changed after it was saved. Restore a backup.")
    return manifest


def _read(folder: Path, name: str) -> bytes:
    if not (folder / name).is_file():
        raise StateFormatError(f"File {name} of the saved state is missing. Restore a backup.")
    data = (folder / name).read_bytes()
    if _digest(data) not in name:
        raise StateFormatError(f"File {name} of the saved state is damaged. Restore a backup.")
    return data
