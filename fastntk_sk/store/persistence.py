"""The folder of a whole estimator: the adapter, and the private half beside it.

Every file is put in place in one instant; `manifest.json` names the others by their checksums and is
written after all of them. Whenever a save is interrupted, the folder holds the old state or the new.
"""

from __future__ import annotations

import os
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from ..exceptions import DecryptionError, NoPrivateStateError, PrivacyWarning, StateFormatError
from ..publishing import files
from ..publishing.config import FORMAT, Checksum, check_intact, describe
from ..publishing.folder import ADAPTER, CONFIG, adapter_file
from ..publishing.rebuilding import build_model, check_sizes, read_adapter, settings_at_fit, unfitted
from . import private_state

__all__ = ["CONFIG", "MANIFEST", "check_key", "check_place", "check_savable", "load", "save"]

MANIFEST = "manifest.json"
_KINDS = {"adapter": "safetensors"} | private_state.FILES
_NAME = rf"({'|'.join(_KINDS)})-([0-9a-f]{{32}})\.(safetensors|jsonl)(\.fernet)?"
_DATA = f"{_NAME}|{files.PARTIAL}"
Name = Annotated[str, Meta(pattern=rf"\A{_NAME}\Z")]


class Names(Struct):
    """The files of a folder."""

    adapter: Name
    statistics: Name
    ledger: Name
    receipts: Name


class Manifest(Struct):
    """What `manifest.json` holds."""

    format: int
    version: str
    files: Names
    checksum: Checksum


def check_savable(classifier: Any, key: bytes | str | None) -> None:
    """Raise NoPrivateStateError for a pulled adapter, and DecryptionError for a malformed key."""
    classifier._held  # noqa: B018 - raises where there is none
    check_key(key)


def check_key(key: bytes | str | None) -> None:
    """Raise DecryptionError for a malformed key."""
    if key is not None:
        private_state.encrypt(b"", key)


def check_place(folder: Path) -> None:
    """Raise StateFormatError unless a state can be saved in a folder."""
    files.check_folder(folder, f"{re.escape(MANIFEST)}|{_DATA}")


def state_files(classifier: Any, key: bytes | str | None) -> dict[str, bytes]:
    """Return the files of a whole estimator by name; the manifest, the last, is never encrypted."""
    adapter = classifier._adapter
    config = describe(adapter, classifier, public=False)
    parts = {"adapter": adapter_file(adapter, config)} | private_state.pack(classifier._held)
    contents, names = {}, {}
    for kind, data in parts.items():
        ending = "" if key is None else ".fernet"
        data = data if key is None else private_state.encrypt(data, key)
        names[kind] = f"{kind}-{files.checksum(data)}.{_KINDS[kind]}{ending}"
        contents[names[kind]] = data
    manifest = {"format": FORMAT, "version": version("fastntk_sk"), "files": names}
    return contents | {MANIFEST: files.canonical(files.with_checksum(manifest))}


def save(classifier: Any, path: str | os.PathLike[str], key: bytes | str | None) -> None:
    """Write the whole estimator; see :meth:`FastNTKClassifier.save`."""
    folder = Path(path)
    check_place(folder)
    contents = state_files(classifier, key)
    files.make_folder(folder, mode=0o700)
    for name, data in contents.items():
        files.replace(folder, name, data)
    files.collect(folder, _DATA, keep=contents)


def load(
    cls: type,
    path: str | os.PathLike[str],
    *,
    backbone: Any,
    device: str | None,
    key: bytes | str | None,
) -> Any:
    """Read what `save` wrote; see :meth:`FastNTKClassifier.load`."""
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
    if (anchor is None) == settings.is_finetuned:
        raise StateFormatError("The statistics are of another anchor. Restore a backup.")
    W, built = tensors["readout"], tensors
    if anchor is None:
        V, moved = tensors["probe_directions"], None
    else:
        V, moved = anchor.directions, anchor.moved
        _check(V, W.dtype, (len(W), W.shape[1] - 1), "anchor.directions")
        built = {n: t for n, t in tensors.items() if not n.startswith("network.")}
        built |= {f"network.{name}": tensor for name, tensor in anchor.network.items()}
    model = build_model(config, settings, backbone, built, V, moved, learns=True)
    check_sizes(model, tensors)
    if anchor is not None:
        _check(anchor.moved, W.dtype, (model.projection.k,), "anchor.moved")
        _check(anchor.delta, W.dtype, (model.projection.p,), "anchor.delta")
        _check(anchor.sgd, W.dtype, tuple(W.shape), "anchor.sgd")
    private = private_state.restore(
        model,
        W,
        tensors["displacement"],
        sums,
        anchor,
        (contents["ledger"], names["ledger"]),
        (contents["receipts"], names["receipts"]),
    )
    classifier = unfitted(cls, config, backbone)
    return classifier._commit(private.adapter(config.classes.labels()), private)


def _check(tensor: Any, dtype: Any, shape: tuple[int, ...], name: str) -> None:
    files.check_tensors({name: tensor}, {name: (dtype, shape)}, "The statistics")


def _read_private(folder: Path, key: bytes | str | None) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the contents of a folder of `save`, decrypted, and the names of the files."""
    document = files.parse_json(files.read(folder, MANIFEST), MANIFEST)
    check_intact(document, MANIFEST)
    manifest = files.convert(document, Manifest, MANIFEST)
    names = {kind: getattr(manifest.files, kind) for kind in _KINDS}
    contents = {}
    for kind, name in names.items():
        match = re.fullmatch(_NAME, name)
        assert match is not None
        data = files.read(folder, name)
        if files.checksum(data) != match[2]:
            raise StateFormatError(f"File {name} of the saved state is damaged. Restore a backup.")
        if match[4]:
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
