"""Saved adapters and states that are taken apart, changed, and written again with checksums that fit."""

import copy
import json
import os
import secrets
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from torch import nn

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import (
    BackboneNotFoundError,
    FastNTKError,
    StateFormatError,
    StateMismatchError,
    SubsetError,
)
from fastntk_sk.publishing import files
from fastntk_sk.store.database import connect

KEY = bytes(range(32))
MIB = 2**20
NAMED = (StateFormatError, StateMismatchError, BackboneNotFoundError, SubsetError)
draws = np.random.default_rng(0)
y = np.arange(12) % 3
X = (draws.normal(size=(12, 3)) + np.eye(3)[y]).astype(np.float32)

ODD = {
    "deep": b'{"format": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep dicts": b'{"format": 1, "x": ' + b'{"a":' * 5000 + b"0" + b"}" * 5000 + b"}",
    "huge": b'{"format": 1, "x": "' + b"x" * 40 * MIB + b'"}',
    "twice": b'{"format": 1, "format": 1}',
    "nan": b'{"format": 1, "x": NaN}',
    "infinite": b'{"format": 1, "x": Infinity}',
    "no object": b"[1]",
    "no number": b'{"format": 1' + b"0" * 5000 + b"}",
    "no integer": b'{"format": true}',
    "no text": b"\xff\xfe{",
}
CHANGES = {
    "a row more": lambda t: torch.cat([t, t[:1]]) if t.ndim else t[None],
    "no dimension": lambda t: torch.zeros((), dtype=t.dtype) if t.ndim else t[None],
    "no rows": lambda t: torch.zeros(0, *t.shape[1:], dtype=t.dtype),
    "60 dimensions": lambda t: t.reshape(*[1] * 60, *t.shape),
    "another precision": lambda t: t.float() if t.dtype != torch.float32 else t.double(),
    "complex": lambda t: torch.zeros(t.shape, dtype=torch.complex64),
    "nan": lambda t: torch.full(t.shape, torch.nan, dtype=torch.float64),
    "missing": lambda t: None,
}


class Payload:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def tiny():
    """Return a network of vectors that is loaded in no time."""
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    with torch.no_grad():
        net[0].weight.copy_(torch.linspace(-1, 1, 12).view(4, 3).roll(1, 0))
        net[0].bias.copy_(torch.linspace(0, 1, 4))
    return net


ADAPTER, STATE = ("pretrained", "adapter"), ("pretrained", "state")
EACH = [ADAPTER, STATE, ("finetuned", "adapter"), ("finetuned", "state")]


def fitted(**changes):
    """Return an estimator that has forgotten two rows in two deletions."""
    params = {"backbone": tiny, "trainable": "norm", "n_components": 8, "batch_size": 4, "max_epochs": 1}
    clf = FastNTKClassifier(**(params | {"random_state": 0} | changes))
    return clf.fit(X, y, sample_ids=range(len(y))).unlearn(X[:1]).unlearn(X[1:2])


def load(path, backbone=tiny, key=None):
    """Read a folder with a public adapter, or the file of a state."""
    if path.is_dir():
        return FastNTKClassifier.from_pretrained(path, backbone=backbone)
    return FastNTKClassifier.load(path, backbone=backbone, key=key)


def outcome(path, backbone=tiny, key=None):
    """Return the named error of a loader, or the scores of the estimator that it made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            clf = load(path, backbone, key)
        except FastNTKError as error:
            return error
        scores = clf.decision_function(X)
        assert scores.shape == (len(X), len(clf.classes_))
        assert np.isfinite(scores.max(axis=1)).all()
        assert isinstance(repr(clf) + clf._repr_html_(), str)
        clf.can_unlearn(X[1:3])
    return scores


def everything(clf):
    """Return what two estimators that hold the same state share; this one forgets a row."""
    scores = clf.decision_function(X).tobytes()
    receipts, rows = clf.receipts_, [clf.can_unlearn(x[None])["n_rows"] for x in X]
    clf.unlearn(X[-1:])
    return [scores, receipts, rows, clf.readout_.tobytes(), clf.displacement_.tobytes()]


@dataclass
class Parts:
    """What the files of an adapter or a state say.

    `config` and `records` are JSON, `receipts` a list of it; `tensors` and `own` (the private ones) are
    dicts of tensors, `statistics` of bytes; `segments` and `ledger` are lists of rows. A public adapter
    has the first two only.
    """

    config: dict
    tensors: dict
    records: dict | None = None
    own: dict | None = None
    statistics: dict | None = None
    segments: list | None = None
    ledger: list | None = None
    receipts: list | None = None

    @classmethod
    def of(cls, path):
        """Take a folder or a file apart."""
        if path.is_dir():
            return cls(*adapter_parts((path / "adapter.safetensors").read_bytes()))
        with connect(path, None) as db:
            model = db.read("model")
            return cls(
                *adapter_parts(model["adapter"]),
                json.loads(model["records"]),
                load_tensors(model["tensors"]),
                db.read("statistics"),
                [[*row] for _, row in db.rows("segments")],
                [[*row] for _, row in db.rows("ledger")],
                [json.loads(receipt) for _, (receipt,) in db.rows("receipts")],
            )

    def copy(self):
        """Return parts that can be changed; tensors are shared, and have to be replaced."""
        tensors = {name: part and dict(part) for name, part in vars(self).items() if name in _SHARED}
        others = {name: part for name, part in vars(self).items() if name not in _SHARED}
        return Parts(**tensors, **copy.deepcopy(others))

    def with_tensors(self, **tensors):
        """Replace tensors of the adapter, and the checksum of all of them."""
        self.tensors |= tensors
        self.config["tensors_checksum"] = files.tensors_checksum(self.tensors)
        return self

    def write(self, path, text=None, **model):
        """Write a folder or a file whose every checksum fits, and return its path.

        `text` stands in place of the configuration, `model` of contents of the state's model.
        """
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        config = text or json.dumps(checked(self.config))
        adapter = files.dump(self.tensors, {"config": config})
        if self.records is None:
            path.mkdir(parents=True)
            (path / "adapter.safetensors").write_bytes(adapter)
            return path
        records, own = json.dumps(self.records).encode(), files.dump(self.own)
        with connect(path, None, write=True, make=True) as db:
            db.write("model", {"adapter": adapter, "records": records, "tensors": own} | model)
            db.write("statistics", self.statistics)
            db.append("segments", self.segments)
            db.append("ledger", self.ledger)
            db.append("receipts", [(json.dumps(receipt).encode(),) for receipt in self.receipts])
            seal(db)
        return path


_SHARED = ("tensors", "own", "statistics")


def seal(db):
    """Let a database name the rows that it holds now."""
    db.replace("saves", [(1, secrets.token_bytes(16), db.seal())])


def checked(document):
    """Return a document with its checksum, or as it is where it has none."""
    try:
        return files.with_checksum({k: v for k, v in document.items() if k != "checksum"})
    except StateFormatError:
        return document


def adapter_parts(data):
    """Return the configuration, without its checksum, and the tensors of an adapter."""
    config = json.loads(files.parse_tensors(data, "adapter")[1]["config"])
    del config["checksum"]
    return config, load_tensors(data)


def saved_parts(folder):
    """Return parts and scores by anchor and kind."""
    found = {}
    for anchor in ("pretrained", "finetuned"):
        clf = fitted(anchor=anchor)
        clf.save_pretrained(folder / anchor / "adapter")
        clf.save(folder / anchor / "state")
        for kind in ("adapter", "state"):
            parts = Parts.of(folder / anchor / kind)
            found[anchor, kind] = parts, clf.decision_function(X)
    return found


class Forge:
    """Changes parts of a case, writes them with checksums that fit, and loads them."""

    def __init__(self, saved, folder):
        self.saved, self.folder = saved, folder

    def __call__(self, case, change):
        """Return the named error, or scores."""
        parts = self.saved[case][0].copy()
        change(parts)
        return outcome(parts.write(self.folder))


def put(path, value):
    """Return a change of one value: "config settings seed", say."""
    first, *middle, last = path.split()

    def change(parts):
        inner = getattr(parts, first)
        for key in middle:
            inner = inner[key]
        inner[last] = value

    return change


def peak(call):
    """Return the bytes by which a call raised the memory of this process at its highest."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and os.access(reset, os.W_OK)):
        pytest.skip("this system does not tell how much memory a call took")

    def kibibytes(name):
        lines = status.read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1])

    reset.write_text("5")
    before = kibibytes("VmRSS")
    call()
    return 1024 * max(0, kibibytes("VmHWM") - before)
