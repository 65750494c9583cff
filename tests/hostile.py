"""Saved folders that are taken apart, changed, and signed again with digests that fit."""

import copy
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from torch import nn

from fastntk_sk import FastNTKClassifier, verify_receipts
from fastntk_sk.exceptions import FastNTKError, ReceiptError, StateFormatError, StateMismatchError
from fastntk_sk.publishing import files

KEY = "aGFsZiBvZiB0aGUgYnl0ZXMgb2YgYSBrZXkgYXJlISE="
MIB = 2**20
KINDS = ("adapter", "state", "encrypted", "receipts")
NAMED = (StateFormatError, StateMismatchError)
draws = np.random.default_rng(0)
y = np.arange(12) % 3
X = (draws.normal(size=(12, 3)) + np.eye(3)[y]).astype(np.float32)


def tiny():
    """Return a network of vectors that is loaded in no time."""
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    with torch.no_grad():
        net[0].weight.copy_(torch.linspace(-1, 1, 12).view(4, 3).roll(1, 0))
        net[0].bias.copy_(torch.linspace(0, 1, 4))
    return net


def pooling():
    """Return a network of pictures of any size."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[0].weight.copy_(torch.linspace(-1, 1, 108).view(4, 3, 3, 3))
        net[0].bias.zero_()
    return net


BACKBONES = {"mlp": None, "module": tiny}
EACH = [
    (name, a, k) for name in BACKBONES for a in ("pretrained", "finetuned") for k in ("adapter", "state")
]
STATES = [case for case in EACH if case[2] == "state"]


def fitted(**changes):
    """Return an estimator that has forgotten a row."""
    params = {"trainable": "norm", "n_components": 16, "batch_size": 4, "max_epochs": 1}
    clf = FastNTKClassifier(**(params | {"random_state": 0} | changes)).fit(
        X, y, sample_ids=range(len(y))
    )
    return clf.unlearn(X[:1])


def load(folder, backbone=None, key=None):
    """Read a folder of either kind."""
    if (folder / "manifest.json").exists():
        return FastNTKClassifier.load(folder, backbone=backbone, key=key)
    return FastNTKClassifier.from_pretrained(folder, backbone=backbone)


def outcome(read):
    """Return the named error of a loader, or the scores of the estimator that it made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            clf = read()
        except FastNTKError as error:
            return error
        scores = clf.decision_function(X)
        assert scores.shape == (len(X), len(clf.classes_))
        rows = clf._adapter.empty
        assert np.isfinite(scores[:, ~rows]).all()
        assert set(clf.predict(X).tolist()) <= set(clf.classes_[~rows].tolist())
        assert isinstance(repr(clf) + clf._repr_html_(), str)
        if clf._private is not None:
            assert clf.can_unlearn(X[1:3])["indices"] is not None
    return scores


@dataclass
class Parts:
    """What the files of a folder say.

    `config` and `records` are JSON; `tensors`, `statistics` and `ledger` are dicts of tensors. A public
    adapter has the first and the second only.
    """

    config: dict
    tensors: dict
    statistics: dict | None = None
    ledger: dict | None = None
    records: dict | None = None
    manifest: dict = field(default_factory=dict)

    @classmethod
    def of(cls, folder):
        """Take a folder apart."""
        if not (folder / "manifest.json").exists():
            return cls(*adapter_parts(folder / "adapter.safetensors"))
        found = {file.name.partition("-")[0]: file for file in folder.iterdir()}
        return cls(
            *adapter_parts(found["adapter"]),
            load_tensors(found["statistics"].read_bytes()),
            load_tensors(found["ledger"].read_bytes()),
            read_records(found["receipts"]),
        )

    def copy(self):
        """Return parts that can be changed; tensors are shared, and have to be replaced."""
        kept = [None if part is None else dict(part) for part in vars(self).values()]
        return Parts(copy.deepcopy(self.config), *kept[1:4], copy.deepcopy(self.records), kept[5])

    def with_tensors(self, **tensors):
        """Replace tensors of the adapter, and the digest of all of them."""
        self.tensors |= tensors
        self.config["tensors"] = files.tensors_digest(self.tensors)
        return self

    def write(self, folder, text=None):
        """Write a folder whose every digest fits; `text` stands in place of the configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            file.unlink()
        config = text or files.canonical(files.signed(self.config)).decode()
        adapter = files.dump(self.tensors, {"config": config})
        if self.records is None:
            (folder / "adapter.safetensors").write_bytes(adapter)
            return folder
        contents = {
            "adapter": adapter,
            "statistics": files.dump(self.statistics),
            "ledger": files.dump(self.ledger),
            "receipts": records_file(self.records),
        }
        write_state(folder, contents, **self.manifest)
        return folder


def read_records(file):
    """Return the records, with the receipts that follow them."""
    first, *receipts = map(json.loads, file.read_text().splitlines())
    return first | {"receipts": receipts}


def records_file(records):
    """Return the content of a file of records: one line, and one for each receipt."""
    receipts = records.get("receipts", [])
    first = {key: value for key, value in records.items() if key != "receipts"}
    found = [first, *(receipts if isinstance(receipts, list) else [receipts])]
    return "\n".join(map(json.dumps, found)).encode()


def adapter_parts(file):
    """Return the configuration, without its digest, and the tensors of an adapter."""
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    config = json.loads(header["__metadata__"]["config"])
    del config["digest"]
    return config, load_tensors(data)


def write_state(folder, contents, encrypted=False, **manifest):
    """Write the files of a whole estimator under the names of their digests, and a manifest."""
    names = {}
    for kind, data in contents.items():
        ending = "jsonl" if kind == "receipts" else "safetensors"
        ending += ".fernet" if encrypted and kind != "adapter" else ""
        names[kind] = f"{kind}-{files.digest(data)}.{ending}"
        (folder / names[kind]).write_bytes(data)
    document = {"format": 1, "version": "0", "files": names} | manifest
    (folder / "manifest.json").write_bytes(files.canonical(files.signed(document)))


def save(clf, kind, folder):
    """Write what one loader reads."""
    if kind == "adapter":
        clf.save_pretrained(folder)
        (folder / "README.md").unlink()
    elif kind == "receipts":
        folder.mkdir(parents=True)
        clf.export_receipts(folder / "receipts.jsonl")
    else:
        clf.save(folder, key=KEY if kind == "encrypted" else None)
    return folder


def reader(kind, folder, heads=(), backbone=None):
    """Return the loader of a folder; that of receipts knows which are the last."""
    if kind == "receipts":
        return lambda: verify_receipts(folder / "receipts.jsonl", heads=heads)
    return lambda: load(folder, backbone, KEY if kind == "encrypted" else None)


class Case:
    """A folder to damage, and what it says."""

    def __init__(self, clf, kind, folder, backbone=None):
        self.kind, self.folder = kind, save(clf, kind, folder)
        self.names = sorted(file.name for file in folder.iterdir())
        self.read = reader(kind, folder, clf._adapter.heads, backbone)
        self.error = ReceiptError if kind == "receipts" else StateFormatError
        self.scores = clf.decision_function(X)

    def check(self):
        """Return the error, or None where predictions are bitwise the same."""
        if self.kind == "receipts":
            try:
                found = self.read()
            except FastNTKError as error:
                found = error
        else:
            found = outcome(self.read)
        if isinstance(found, FastNTKError):
            assert isinstance(found, (self.error, StateFormatError))
            return found
        if self.kind != "receipts":
            np.testing.assert_array_equal(found, self.scores)
        return None

    def damage(self, name, data):
        """Return the error of other bytes in a file, or None if they say the same."""
        path = self.folder / name
        original = path.read_bytes()
        path.write_bytes(data)
        error = self.check()
        path.write_bytes(original)
        assert error is not None or meaning(name, data) == meaning(name, original)
        return error


def meaning(name, data):
    """Return what a file says, apart from how JSON spells it."""
    if name == "receipts.jsonl":
        return [json.loads(line) for line in data.splitlines()]
    if name.endswith(".json"):
        return json.loads(data)
    stop = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:stop])
    config = json.loads(header["__metadata__"].pop("config"))
    return header, config, data[stop:]


def saved_parts(folder):
    """Return parts and scores by backbone, anchor and kind."""
    found = {}
    for name, backbone in BACKBONES.items():
        for anchor in ("pretrained", "finetuned"):
            clf = fitted(anchor=anchor, backbone=backbone or name)
            clf.save_pretrained(folder / name / anchor / "adapter")
            clf.save(folder / name / anchor / "state")
            for kind in ("adapter", "state"):
                parts = Parts.of(folder / name / anchor / kind)
                found[name, anchor, kind] = parts, clf.decision_function(X)
    return found


class Forge:
    """Changes parts of a case, signs them, and loads them."""

    def __init__(self, saved, folder):
        self.saved, self.folder = saved, folder

    def reader(self, case, change):
        """Write the files, and return what loads them."""
        parts = self.saved[case][0].copy()
        change(parts)
        parts.write(self.folder)
        return lambda: outcome(lambda: load(self.folder, BACKBONES[case[0]]))

    def __call__(self, case, change):
        """Return the named error, or scores."""
        return self.reader(case, change)()

    def spent(self, case, change):
        """Return how many bytes the loader took, how many there are in the files, and the error."""
        read, found = self.reader(case, change), []
        n_read = sum(file.stat().st_size for file in self.folder.iterdir())
        return peak(lambda: found.append(read())), n_read, found[0]


def put(path, value):
    """Return a change of one value of the configuration, or of the records."""

    def change(parts):
        inner = getattr(parts, path[0])
        for key in path[1:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def peak(call):
    """Return the bytes by which a call raised the memory of this process at its highest."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and os.access(reset, os.W_OK)):
        pytest.skip("this system does not tell how much memory a call took")

    def kibibytes(name):
        return int(
            next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1]
        )

    reset.write_text("5")
    before = kibibytes("VmRSS")
    call()
    return 1024 * max(0, kibibytes("VmHWM") - before)
