"""Folders: the public adapter, and the whole estimator with its private state.

Every file is put in place in one instant, and each folder has one commit point: `adapter.safetensors`,
which holds its own configuration, and `manifest.json`, which names files by their digests and is
written after all of them. Whenever a save is interrupted, the folder holds the old state or the new.
"""

from __future__ import annotations

import os
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..exceptions import (
    DecryptionError,
    NoPrivateStateError,
    PrivacyWarning,
    PublicationError,
    StateFormatError,
)
from ..publishing import files
from ..publishing.adapter import Adapter
from ..publishing.config import FORMAT, class_labels, describe, intact
from ..publishing.rebuilding import build_model, check_sizes, read_adapter, settings_at_fit, unfitted
from ..publishing.schema import integer, section, text
from ..state import State
from . import private_state

ADAPTER, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"
MANIFEST = "manifest.json"
_KINDS = {"adapter": "safetensors"} | private_state.FILES
_NAMES = {kind: rf"{kind}-([0-9a-f]{{32}})\.{ending}(\.fernet)?" for kind, ending in _KINDS.items()}
_MANIFEST: dict[str, Any] = {
    "format": integer(1, FORMAT),
    "files": {kind: text(re.compile(name)) for kind, name in _NAMES.items()},
}
_DATA = "|".join([*_NAMES.values(), files.PARTIAL])


def adapter_files(classifier: Any, card: str) -> dict[str, bytes]:
    """Return the files of a public adapter, in the order in which they are written.

    Parameters
    ----------
    classifier : FastNTKClassifier

    card : str
        Content of README.md.

    Returns
    -------
    contents : dict
        By name.
    """
    adapter: Adapter = classifier._adapter
    check_publishable(adapter)
    config = describe(adapter, classifier, public=True)
    return {
        ADAPTER: _adapter_file(adapter, config),
        CONFIG: files.canonical(config),
        CARD: card.encode(errors="replace"),
    }


def save_adapter(classifier: Any, path: str | os.PathLike[str], card: str) -> None:
    """Write the public adapter; see :meth:`FastNTKClassifier.save_pretrained`.

    Parameters
    ----------
    classifier : FastNTKClassifier

    path : str or path-like

    card : str
        Content of README.md.
    """
    folder = Path(path)
    if _private_files(folder):
        raise PublicationError(
            f"{str(folder)!r} holds files of a private state. Save the public adapter to another "
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
    files.collect(folder, files.PARTIAL)


def check_publishable(adapter: Adapter) -> None:
    """Raise PublicationError where predictions need a fine-tuned anchor, which has seen every row."""
    if adapter.settings.is_finetuned and adapter.settings.predict_with == "linear":
        raise PublicationError(
            'With anchor="finetuned" and predict_with="linear", predictions need the weights that SGD '
            "left, which have seen forgotten rows too: they are private. Fit with "
            'predict_with="network" to publish, or use save().'
        )


def check_savable(classifier: Any, key: bytes | str | None) -> None:
    """Raise NoPrivateStateError for a pulled adapter, and DecryptionError for a malformed key."""
    if classifier._state:
        check_key(key)


def check_key(key: bytes | str | None) -> None:
    """Raise DecryptionError for a malformed key."""
    if key is not None:
        private_state.encrypt(b"", key)


def load_adapter(cls: type, folder: Path, *, backbone: Any, device: str | None) -> Any:
    """Read a public adapter; see :meth:`FastNTKClassifier.from_pretrained`.

    Parameters
    ----------
    cls : type

    folder : Path

    backbone : str, nn.Module, callable or None

    device : str or None

    Returns
    -------
    classifier : FastNTKClassifier
    """
    if _private_files(folder):
        raise StateFormatError(
            f"{str(folder)!r} holds a whole estimator with its private state. Read it with "
            "FastNTKClassifier.load."
        )
    config, tensors = read_adapter(files.read(folder, ADAPTER), ADAPTER)
    if (folder / CONFIG).exists() or (folder / CONFIG).is_symlink():
        beside = intact(files.parse_json(files.read(folder, CONFIG), CONFIG), CONFIG)
        if beside.get("tensors") != config["tensors"]:
            warnings.warn(
                f"{CONFIG} in {str(folder)!r} describes another model than {ADAPTER}, which is the one "
                "that is loaded: a save was interrupted, or files were mixed. Save once more before you "
                "publish.",
                PrivacyWarning,
                stacklevel=4,
            )
    source = config["backbone"]["source"] or ""
    if backbone is None and source.startswith("local-dir:"):
        raise StateFormatError(
            f"{ADAPTER} names a folder as backbone ({source!r:.100}), which is not read: whoever wrote "
            "the file could name any. If it is yours, pass from_pretrained(..., backbone=...)."
        )
    settings = settings_at_fit(config, device)
    if settings.is_finetuned and settings.predict_with == "linear":
        raise StateFormatError(f"{ADAPTER} lacks the anchor that its predictions need.")
    V = tensors.get("probe_directions")
    if V is None:
        V = torch.zeros_like(tensors["readout"][:, :-1])
    moved = torch.zeros(config["settings"]["n_components"]) if settings.is_finetuned else None
    network = files.under(tensors, "network.")
    ladder = files.under(tensors, "ladder.")
    model = build_model(config, settings, backbone, network, V, moved, ladder, learns=False)
    check_sizes(model, tensors)
    displacement = tensors["displacement"]
    empty = np.zeros(len(tensors["readout"]), dtype=bool)
    empty[config["without_rows"]] = True
    adapter = Adapter(
        model,
        model.parameters(
            tensors["readout"], displacement if moved is None else torch.zeros_like(displacement)
        ),
        displacement,
        empty,
        config["n_samples_learned"],
        config["n_samples_forgotten"],
        config["exactness"],
        config["receipts"],
    )
    return unfitted(cls, config, backbone)._commit(adapter, class_labels(config))


def check_place(folder: Path) -> None:
    """Raise StateFormatError unless a state can be saved in a folder."""
    files.check_folder(folder, f"{re.escape(MANIFEST)}|{_DATA}")


def state_files(classifier: Any, key: bytes | str | None) -> dict[str, bytes]:
    """Return the files of a whole estimator; the last one is the manifest, which names the others.

    Parameters
    ----------
    classifier : FastNTKClassifier

    key : bytes, str or None
        Encrypts all of them but the manifest.

    Returns
    -------
    contents : dict
        By name.
    """
    state: State = classifier._state
    config = describe(state.adapter, classifier, public=False)
    parts = {"adapter": _adapter_file(state.adapter, config)} | private_state.pack(state)
    contents, names = {}, {}
    for kind, data in parts.items():
        ending = "" if key is None else ".fernet"
        data = data if key is None else private_state.encrypt(data, key)
        names[kind] = f"{kind}-{files.digest(data)}.{_KINDS[kind]}{ending}"
        contents[names[kind]] = data
    manifest = {"format": FORMAT, "version": version("fastntk_sk"), "files": names}
    return contents | {MANIFEST: files.canonical(files.signed(manifest))}


def save(classifier: Any, path: str | os.PathLike[str], key: bytes | str | None) -> None:
    """Write the whole estimator; see :meth:`FastNTKClassifier.save`.

    Parameters
    ----------
    classifier : FastNTKClassifier

    path : str or path-like

    key : bytes, str or None
    """
    folder = Path(path)
    check_place(folder)
    contents = state_files(classifier, key)
    files.make_folder(folder, mode=0o700)
    for name, data in contents.items():
        files.replace(folder, name, data)
    files.collect(folder, _DATA, keep=contents)


def _private_files(folder: Path) -> set[str]:
    """Return what is there of a state, of an interrupted save too."""
    pattern = f"{re.escape(MANIFEST)}|{'|'.join(_NAMES.values())}"
    return files.matching(folder, pattern) if folder.is_dir() else set()


def load(
    cls: type,
    path: str | os.PathLike[str],
    *,
    backbone: Any,
    device: str | None,
    key: bytes | str | None,
) -> Any:
    """Read what `save` wrote; see :meth:`FastNTKClassifier.load`.

    Parameters
    ----------
    cls : type
        FastNTKClassifier or a subclass.

    path : str or path-like

    backbone : str, nn.Module, callable or None

    device : str or None

    key : bytes, str or None

    Returns
    -------
    classifier : FastNTKClassifier
    """
    folder = Path(path)
    if not (folder / MANIFEST).exists() and (folder / ADAPTER).exists():
        raise NoPrivateStateError(
            f"{str(folder)!r} holds a public adapter, without the private state. Read it with "
            "FastNTKClassifier.from_pretrained."
        )
    contents, names = _read_private(folder, key)
    config, tensors = read_adapter(contents["adapter"], names["adapter"])
    sums, anchor = private_state.parse_statistics(contents["statistics"], names["statistics"])
    settings = settings_at_fit(config, device)
    if (anchor is None) == (settings.is_finetuned):
        raise StateFormatError("The statistics are of another anchor. Restore a backup.")
    if anchor is None:
        network, V, moved = files.under(tensors, "network."), tensors["probe_directions"], None
    else:
        network, V, moved = anchor.network, anchor.directions, anchor.moved
        W = tensors["readout"]
        wanted = {"readout": (W.dtype, (len(W), W.shape[1] - 1))}
        private_state.check_tensors({"readout": V}, wanted, names["statistics"])
    ladder = files.under(tensors, "ladder.")
    model = build_model(config, settings, backbone, network, V, moved, ladder, learns=True)
    check_sizes(model, tensors)
    if anchor is not None:
        found = {"moved": anchor.moved, "delta": anchor.delta, "sgd": anchor.sgd}
        W, p = tensors["readout"], model.projection.p
        dtype = W.dtype
        expected = {"moved": (model.projection.k,), "delta": (p,), "sgd": tuple(W.shape)}
        private_state.check_tensors(
            found, {name: (dtype, shape) for name, shape in expected.items()}, names["statistics"]
        )
    state = private_state.restore(
        model,
        tensors["readout"],
        tensors["displacement"],
        sums,
        anchor,
        (contents["ledger"], names["ledger"]),
        (contents["receipts"], names["receipts"]),
    )
    return unfitted(cls, config, backbone)._commit(state, class_labels(config))


def _adapter_file(adapter: Adapter, config: dict[str, Any]) -> bytes:
    return files.dump(adapter.tensors(), {"config": files.canonical(config).decode()})


def _read_private(folder: Path, key: bytes | str | None) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the contents of a folder of `save`, decrypted, and the names of the files."""
    written = files.read(folder, MANIFEST)
    try:
        return _read_named(folder, written, key)
    except StateFormatError:
        if files.read(folder, MANIFEST) == written:
            raise
    return _read_private(folder, key)  # another process has saved meanwhile


def _read_named(
    folder: Path, written: bytes, key: bytes | str | None
) -> tuple[dict[str, bytes], dict[str, str]]:
    manifest = files.parse_json(written, MANIFEST)
    names = section(intact(manifest, MANIFEST), _MANIFEST, MANIFEST)["files"]
    contents = {}
    for kind, name in names.items():
        match = re.fullmatch(_NAMES[kind], name)
        assert match is not None
        data = files.read(folder, name)
        if files.digest(data) != match[1]:
            raise StateFormatError(f"File {name} of the saved state is damaged. Restore a backup.")
        if match[2]:
            if key is None:
                raise DecryptionError(
                    f"{name} is encrypted. Pass the key of save(): load(..., key=...)."
                )
            data = private_state.decrypt(data, key, name)
        elif key is not None:
            raise DecryptionError(
                f"{name} is not encrypted, and a key was given: anybody may have written it. Load it "
                "without a key if you trust it."
            )
        contents[kind] = data
    left = files.matching(folder, _DATA) - set(names.values())
    if left:
        warnings.warn(
            f"A save to {str(folder)!r} was interrupted, or goes on, and files of another state are "
            f"there, which may remember forgotten rows: {sorted(left)}. Saving once more deletes them.",
            PrivacyWarning,
            stacklevel=5,
        )
    return contents, names
