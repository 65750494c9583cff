"""Damaged and foreign files: each is a named error, and nothing is executed, followed or written."""

import json
import os
import pickle
import re
import shutil
import socket
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from hostile import KEY, KINDS, MIB, Case, Parts, X, fitted, outcome, peak, reader, save, write_state

from fastntk_sk import FastNTKClassifier, verify_receipts
from fastntk_sk.exceptions import (
    InsufficientMemoryError,
    PrivacyWarning,
    ReceiptError,
    StateFormatError,
    UnknownKeyWarning,
)
from fastntk_sk.publishing import files
from fastntk_sk.store.private_state import encrypt


@pytest.fixture(scope="module")
def clf():
    return fitted().unlearn(X[1:2])


@pytest.fixture(scope="module")
def other():
    return fitted(random_state=1).unlearn(X[1:2])


@pytest.fixture(params=KINDS)
def case(request, clf, tmp_path):
    found = Case(clf, request.param, tmp_path / request.param)
    assert found.check() is None
    return found


def test_flipped_bits(case):
    draws = np.random.default_rng(0)
    n_flips, same = 0, 0
    for name in case.names:
        data = (case.folder / name).read_bytes()
        # half of them in the first bytes, where lengths, names and shapes are
        early = draws.choice(min(8 * len(data), 8 * 2048), 30, replace=False)
        anywhere = draws.choice(8 * len(data), 30, replace=False)
        for bit in {*early.tolist(), *anywhere.tolist()}:
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            same += case.damage(name, bytes(changed)) is None
            n_flips += 1
    assert n_flips > 55 * len(case.names)
    assert same <= 3  # such as 1E-05 for 1e-05


def test_truncation(case):
    for name in case.names:
        data = (case.folder / name).read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        at = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) // 2, len(data) - 2}
        for n_bytes in sorted(at & set(range(len(data)))):
            assert case.damage(name, data[:n_bytes]) is not None
        if name.endswith(("safetensors", "fernet")):
            assert case.damage(name, data + b"\0") is not None


def test_a_missing_file(case):
    for name in case.names:
        (case.folder / name).rename(case.folder.parent / "away")
        found = case.check()
        if name == "config.json":  # adapter.safetensors holds it too
            assert found is None
        elif name == "manifest.json":  # an interrupted first save
            assert "with its private state" in str(found)
        else:
            assert "it is missing" in str(found)
        (case.folder.parent / "away").rename(case.folder / name)


def test_files_of_another_model(case, other, tmp_path):
    theirs = Case(other, case.kind, tmp_path / "other")
    for name in case.names:
        kind = name.partition("-")[0]
        twin = next(file for file in theirs.names if file.partition("-")[0] == kind)
        mine, data = case.folder / name, (theirs.folder / twin).read_bytes()
        if name == "adapter.safetensors":  # the whole other model
            mine.write_bytes(data)
            with pytest.warns(PrivacyWarning, match="describes another model"):
                case.read()
            np.testing.assert_array_equal(outcome(case.read), theirs.scores)
        elif name == "config.json":
            mine.write_bytes(data)
            np.testing.assert_array_equal(case.read().decision_function(X), theirs.scores)
        else:
            assert case.damage(name, data) is not None


def block(path, what, tmp_path):
    """Put something else in place of a file."""
    kept = tmp_path / "kept"
    shutil.move(path, kept)
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    else:
        targets = {"outside": kept, "endless": "/dev/zero", "dangling": tmp_path / "no", "loop": path}
        path.symlink_to(targets[what])
    return kept


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("what", ["folder", "pipe", "socket", "outside", "endless", "dangling", "loop"])
def test_what_is_no_file(case, what, tmp_path):
    for name in case.names:
        path = case.folder / name
        kept = block(path, what, tmp_path)
        assert case.check() is not None
        path.rmdir() if what == "folder" else path.unlink()
        shutil.move(kept, path)


def cached(folder, cache):
    """Lay a folder out as the client of the Hub does: links from a snapshot into blobs."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            link = cache / "snapshots" / "abc" / file.relative_to(folder)
            blob = cache / "blobs" / files.digest(str(link).encode())
            for parent in (link.parent, blob.parent):
                parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return cache / "snapshots" / "abc"


def test_the_cache_of_the_hub(clf, tmp_path, monkeypatch):
    clf.save_pretrained(tmp_path / "repo")
    clf.save(tmp_path / "repo" / "private_state")
    snapshot = cached(tmp_path / "repo", tmp_path / "models--me--adapter")
    for here, folder in (("/", snapshot), (snapshot.parent, Path("abc")), (snapshot, Path("."))):
        monkeypatch.chdir(here)
        pulled = FastNTKClassifier.from_pretrained(folder)
        np.testing.assert_array_equal(pulled.decision_function(X), clf.decision_function(X))
        assert FastNTKClassifier.load(folder / "private_state").n_samples_learned_ == 10


@pytest.mark.parametrize("target", ["../../../other/blobs/x", "../../blobs/deep/x", "../../x"])
def test_a_link_that_leaves_the_blobs(clf, tmp_path, target):
    clf.save_pretrained(tmp_path / "repo")
    snapshot = cached(tmp_path / "repo", tmp_path / "models--me--adapter")
    outside = snapshot / target
    outside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(snapshot / "adapter.safetensors", outside.resolve())
    (snapshot / "adapter.safetensors").unlink()
    (snapshot / "adapter.safetensors").symlink_to(target)
    with pytest.raises(StateFormatError, match="link out of its folder"):
        FastNTKClassifier.from_pretrained(snapshot)


def test_blobs_that_are_a_link(clf, tmp_path):
    clf.save_pretrained(tmp_path / "repo")
    snapshot = cached(tmp_path / "repo", tmp_path / "models--me--adapter")
    blobs = snapshot.parent.parent / "blobs"
    shutil.move(blobs, tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateFormatError, match="link out of its folder"):
        FastNTKClassifier.from_pretrained(snapshot)


class Payload:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["adapter", "state", "encrypted"])
def test_a_pickle_is_not_opened(clf, tmp_path, kind):
    trace = tmp_path / "trace"
    torch.save(Payload(trace), tmp_path / "zip")
    for data in (pickle.dumps(Payload(trace)), (tmp_path / "zip").read_bytes()):
        case = Case(clf, kind, tmp_path / "saved")
        for name in case.names:
            assert case.damage(name, data) is not None
        if kind != "adapter":
            contents = {name.partition("-")[0]: (case.folder / name) for name in case.names}
            del contents["manifest.json"]
            contents = {part: path.read_bytes() for part, path in contents.items()}
            for part in contents:
                hidden = encrypt(data, KEY) if kind == "encrypted" and part != "adapter" else data
                write_state(case.folder, contents | {part: hidden}, encrypted=kind == "encrypted")
                assert case.check() is not None
        shutil.rmtree(case.folder)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()


def test_names_in_the_manifest(clf, tmp_path):
    folder = save(clf, "state", tmp_path / "state")
    names = json.loads((folder / "manifest.json").read_text())["files"]
    shutil.copy(folder / names["ledger"], tmp_path)
    for name in (
        str(tmp_path / names["ledger"]),
        f"../{names['ledger']}",
        f"./{names['ledger']}",
        f"{names['ledger']}/",
        f"{names['ledger']}\n",
        f"{names['ledger']}\0",
        names["ledger"].replace("safetensors", "pkl"),
        names["statistics"],
        "/etc/passwd",
        "..",
        "",
        None,
        7,
        [names["ledger"]],
        {"path": names["ledger"]},
    ):
        manifest = {"format": 1, "files": names | {"ledger": name}}
        (folder / "manifest.json").write_bytes(files.canonical(files.signed(manifest)))
        with pytest.raises(StateFormatError, match=r"files\.ledger"):
            FastNTKClassifier.load(folder)
    for found in (None, [], "x", {}, {"adapter": names["adapter"]}):
        manifest = files.signed({"format": 1, "files": found})
        (folder / "manifest.json").write_bytes(files.canonical(manifest))
        with pytest.raises(StateFormatError, match="'files"):
            FastNTKClassifier.load(folder)


NESTED = b'{"format": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
TWICE = b'{"format": 1, "format": 1}'
BRACKETS = b'{"format": 1, "x": [' + b"[]," * 300_000 + b"[]]}"
DEEP = b'{"format": 1, "x": ' + b'{"a":' * 101 + b"0" + b"}" * 101 + b"}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NESTED, "is damaged|opens"),
        (NESTED[:100_000], "is damaged|opens"),
        (BRACKETS, r"opens 300,0\d\d brackets"),
        (DEEP, "nested more than 100 deep"),
        (TWICE, "holds 'format' 2 times"),
        (b"[]", "Expected a JSON object"),
        (b'"x"', "Expected a JSON object"),
        (b'{"format": 1' + b"0" * 5000 + b"}", "is damaged"),
        (b'{"format": 1e999}', "integer format"),
        (b'{"format": true}', "integer format"),
        (b"\xff\xfe{", "is damaged"),
        (b"\xef\xbb\xbf{}", "integer format"),
    ],
    ids=range(12),
)
def test_odd_json(clf, tmp_path, text, message):
    adapter, state = (save(clf, kind, tmp_path / kind) for kind in ("adapter", "state"))
    parts = Parts.of(adapter)
    (adapter / "config.json").write_bytes(text)
    (state / "manifest.json").write_bytes(text)
    (tmp_path / "receipts.jsonl").write_bytes(text)
    with pytest.raises(StateFormatError, match=message):
        FastNTKClassifier.from_pretrained(adapter)
    with pytest.raises(StateFormatError, match=message):
        FastNTKClassifier.load(state)
    with pytest.raises(ReceiptError):
        verify_receipts(tmp_path / "receipts.jsonl")
    if text.isascii():
        with pytest.raises(StateFormatError, match=message):
            FastNTKClassifier.from_pretrained(parts.write(tmp_path / "header", text.decode()))


def test_gigantic_files_are_not_read(clf, tmp_path):
    for kind, name, n_bytes, error in (
        ("adapter", "config.json", 64 * MIB, StateFormatError),
        ("state", "manifest.json", 64 * MIB, StateFormatError),
        ("state", "receipts-", 2**40, InsufficientMemoryError),
        ("adapter", "adapter.safetensors", 2**40, InsufficientMemoryError),
        ("state", "ledger-", 2**40, InsufficientMemoryError),
        ("encrypted", "receipts-", 2**40, InsufficientMemoryError),
        ("receipts", "receipts.jsonl", 2**40, InsufficientMemoryError),
    ):
        folder = save(clf, kind, tmp_path / f"{kind}-{name}")
        path = next(folder.glob(f"{name}*"))
        with path.open("r+b") as file:
            file.truncate(n_bytes)
        found = []

        def read(kind=kind, folder=folder, error=error, found=found):
            with pytest.raises(error) as caught:
                reader(kind, folder)()
            found.append(str(caught.value))

        assert peak(read) < 32 * MIB
        assert re.search("67,108,864 bytes|nothing was allocated", found[0])


def test_what_is_large_costs_what_the_file_does(clf, tmp_path):
    parts = Parts.of(save(clf, "adapter", tmp_path / "adapter"))
    folder = parts.write(tmp_path / "long", json.dumps({"format": 1, "x": "x" * 40 * MIB}))
    assert peak(lambda: outcome(lambda: hostile.load(folder))) < 8 * 40 * MIB
    assert "at most" in str(outcome(lambda: hostile.load(folder)))
    path = save(clf, "receipts", tmp_path / "receipts") / "receipts.jsonl"
    path.write_bytes(path.read_bytes() + b"0" * 40 * MIB)

    def read():
        with pytest.raises(ReceiptError, match="at most"):
            verify_receipts(path)

    assert peak(read) < 8 * 40 * MIB


def test_unknown_keys_of_the_manifest_warn(clf, tmp_path):
    folder = save(clf, "state", tmp_path / "state")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digest"]
    manifest["colour"] = "red"
    (folder / "manifest.json").write_bytes(files.canonical(files.signed(manifest)))
    with pytest.warns(UnknownKeyWarning, match="colour"):
        FastNTKClassifier.load(folder)
