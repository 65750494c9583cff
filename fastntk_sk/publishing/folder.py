"""The folder of a public adapter: written, and read again.

`adapter.safetensors` holds its own configuration and is replaced in one instant: whenever a save is
interrupted, the folder holds the old adapter or the new one. `config.json` is a copy for the Hub and for
people, which is not read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import asdict

from ..exceptions import PublicationError, StateFormatError
from . import files
from .adapter import Adapter
from .config import OWNERS, describe
from .rebuilding import build_model, check_sizes, read_adapter, settings_at_fit, unfitted

ADAPTER, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"
_PRIVATE = "*.fastntk"  # what save() writes, if it is named as the documentation does


def adapter_files(classifier: Any, card: str) -> dict[str, bytes]:
    """Return the files of a public adapter by their names, in the order in which they are written."""
    adapter: Adapter = classifier._adapter
    if adapter.settings.needs_anchor:
        raise PublicationError(
            'With a module as anchor, or anchor="finetuned" and predict_with="linear", predictions need '
            "weights that have seen forgotten rows too: they are private. Publish another anchor, with "
            'predict_with="network", or use save() or to_module().'
        )
    config = describe(adapter, classifier, public=True)
    return {
        ADAPTER: adapter_file(adapter, config),
        CONFIG: files.canonical(config),
        CARD: card.encode(errors="replace"),
    }


def adapter_file(adapter: Adapter, config: dict[str, Any]) -> bytes:
    """Return the content of `adapter.safetensors`."""
    return files.dump(adapter.tensors(), {"config": files.canonical(config).decode()})


def save_adapter(classifier: Any, path: str | os.PathLike[str], card: str) -> None:
    """Write the public adapter; see :meth:`FastNTKClassifier.save_pretrained`."""
    folder = Path(path)
    if any(folder.glob(_PRIVATE)):
        raise PublicationError(
            f"{str(folder)!r} holds a private state. Save the public adapter to another "
            "folder, so that they are not published together."
        )
    foreign = [name for name in (CONFIG, CARD) if (folder / name).exists()]
    if foreign and not (folder / ADAPTER).exists():
        raise PublicationError(
            f"{str(folder)!r} holds a {foreign[0]} of something else, which would be overwritten. Save "
            "to another folder."
        )
    contents = adapter_files(classifier, card)
    files.make_folder(folder)
    for name, data in contents.items():
        files.replace(folder, name, data, files.PUBLIC)
    for partial in folder.glob(files.PARTIAL):  # of an interrupted save
        partial.unlink(missing_ok=True)


def load_adapter(cls: type, folder: Path, *, backbone: Any, device: str | None) -> Any:
    """Read a public adapter; see :meth:`FastNTKClassifier.from_pretrained`."""
    config, tensors = read_adapter(files.read(folder, ADAPTER), ADAPTER)
    source = config.backbone.source or ""
    if backbone is None and source.startswith("local-dir:"):
        raise StateFormatError(
            f"{ADAPTER} names a folder as backbone ({source!r:.100}), which is not read: whoever wrote "
            "the file could name any. If it is yours, pass from_pretrained(..., backbone=...)."
        )
    for name in OWNERS:
        config.params.pop(name, None)
    settings = settings_at_fit(config, device)
    if settings.needs_anchor:
        raise StateFormatError(f"{ADAPTER} lacks the anchor that its predictions need.")
    W, displacement = tensors["readout"], tensors["displacement"]
    V = tensors.get("probe_directions", torch.zeros_like(W[:, :-1]))
    moved = torch.zeros(int(settings.n_components or 0)) if settings.anchor_has_seen else None
    model = build_model(config, settings, backbone, tensors, V, moved, learns=False)
    check_sizes(model, tensors)
    empty = np.zeros(len(W), dtype=bool)
    empty[config.without_rows] = True
    adapter = Adapter(
        model,
        model.parameters(W, displacement if moved is None else torch.zeros_like(displacement)),
        displacement,
        empty,
        config.n_samples_learned,
        config.classes.labels(),
        config.n_samples_forgotten,
        asdict(config.exactness),
        config.receipts,
    )
    return unfitted(cls, config, backbone)._commit(adapter)
