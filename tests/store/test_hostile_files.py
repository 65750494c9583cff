"""Damaged and forged files: each is a named error, and nothing is executed, followed or allocated."""

import json
import os
import pickle
import shutil
from functools import partial
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from hostile import ADAPTER, KEY, MIB, NAMED, STATE, Parts, X, fitted, outcome, peak, put, y

from fastntk_sk import FastNTKClassifier, verify_receipts
from fastntk_sk.exceptions import (
    FastNTKError,
    InsufficientMemoryError,
    PrivacyWarning,
    ReceiptError,
    StateFormatError,
    StateMismatchError,
    UnknownKeyWarning,
    WeightsUnavailableError,
)
from fastntk_sk.publishing import files, rebuilding
from fastntk_sk.store.private_state import encrypt

KINDS = ("adapter", "state", "encrypted", "receipts")


@pytest.fixture(scope="module")
def clf():
    return fitted()


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


def error_of(clf, kind, folder):
    """Return the error of a loader, or None if it reads what was saved."""
    if kind == "receipts":
        try:
            heads = [clf.receipts_[-1]["checksum"]]
            assert verify_receipts(folder / "receipts.jsonl", heads=heads) == clf.receipts_
        except StateFormatError as error:
            return error
        return None
    found = outcome(folder, key=KEY if kind == "encrypted" else None)
    if isinstance(found, FastNTKError):
        assert isinstance(found, StateFormatError)
        return found
    np.testing.assert_array_equal(found, clf.decision_function(X))
    return None


# damage


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(clf, kind, tmp_path):
    folder = save(clf, kind, tmp_path / kind)
    assert error_of(clf, kind, folder) is None
    draws = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        # half of the bits are among the first bytes, where lengths, names and shapes are
        early, anywhere = (draws.integers(8 * n, size=4) for n in (min(len(data), 2048), len(data)))
        for bit in map(int, [*early, *anywhere]):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            error_of(clf, kind, folder)
        header = 8 + int.from_bytes(data[:8], "little")
        for n_bytes in {0, 7, 8, header, len(data) // 2, len(data) - 2} & set(range(len(data))):
            path.write_bytes(data[:n_bytes])
            assert error_of(clf, kind, folder) is not None
        path.unlink()
        missing = error_of(clf, kind, folder)
        if path.name != "config.json":  # adapter.safetensors holds it too
            assert "private state" in str(missing) or "is missing" in str(missing)
        path.write_bytes(data)


def test_files_of_another_model(clf, tmp_path):
    other = fitted(random_state=1)
    mine, theirs = save(clf, "adapter", tmp_path / "mine"), save(other, "adapter", tmp_path / "theirs")
    shutil.copy(theirs / "adapter.safetensors", mine)
    with pytest.warns(PrivacyWarning, match="another model"):
        pulled = hostile.load(mine)
    np.testing.assert_array_equal(pulled.decision_function(X), other.decision_function(X))


# what is no file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("kind", ["adapter", "state", "receipts"])
def test_what_is_no_file(clf, kind, tmp_path):
    folder = save(clf, kind, tmp_path / kind)
    path = sorted(folder.iterdir())[0]
    kept = shutil.move(path, tmp_path / "kept")
    for target in (kept, "/dev/zero", tmp_path / "no", path):
        path.symlink_to(target)
        assert error_of(clf, kind, folder) is not None
        path.unlink()
    os.mkfifo(path)
    assert error_of(clf, kind, folder) is not None
    path.unlink()
    path.mkdir()
    assert error_of(clf, kind, folder) is not None


def cached(folder, cache):
    """Lay a folder out as the client of the Hub does: links from a snapshot into blobs."""
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        link = cache / "snapshots" / "abc" / file.relative_to(folder)
        blob = cache / "blobs" / files.checksum(str(link).encode())
        for parent in (link.parent, blob.parent):
            parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return cache / "snapshots" / "abc"


def test_the_cache_of_the_hub(clf, tmp_path, monkeypatch):
    clf.save_pretrained(tmp_path / "repo")
    clf.save(tmp_path / "repo" / "private_state")
    snapshot = cached(tmp_path / "repo", tmp_path / "models--me--adapter")
    monkeypatch.chdir(snapshot)
    for folder in (snapshot, Path(".")):
        np.testing.assert_array_equal(outcome(folder), clf.decision_function(X))
        assert hostile.load(folder / "private_state").n_samples_learned_ == 10
    link = snapshot / "adapter.safetensors"
    for target in ("../../../other/blobs/x", "../../blobs/deep/x", "../../x"):
        outside = snapshot / target
        outside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(link, outside.resolve())
        link.unlink()
        link.symlink_to(target)
        assert "link out of" in str(outcome(snapshot))


# code


class Payload:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("kind", ["adapter", "state", "encrypted"])
def test_a_pickle_is_not_opened(clf, tmp_path, kind):
    """Nor one under names, checksums and a key that fit."""
    trace = tmp_path / "trace"
    torch.save(Payload(trace), tmp_path / "zip")
    folder = save(clf, kind, tmp_path / "saved")
    for bomb in (pickle.dumps(Payload(trace)), (tmp_path / "zip").read_bytes()):
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            path.write_bytes(bomb)
            assert error_of(clf, kind, folder) is not None
            path.write_bytes(data)
    if kind != "adapter":
        names = json.loads((folder / "manifest.json").read_text())["files"]
        data = encrypt(bomb, KEY) if kind == "encrypted" else bomb
        for part, name in names.items():
            forged = f"{part}-{files.checksum(data)}.{name.partition('.')[2]}"
            (folder / forged).write_bytes(data)
            hostile.write_state(folder, {}, files=names | {part: forged})
            assert isinstance(error_of(clf, kind, folder), StateFormatError)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists()


NAMES = ["os.system", "builtins.eval", "https://evil/x", "file:///etc", "../x", "~/x", "resnet18; x", ""]
NAMES += ["hf-hub:../../x", "hf-hub:a/b@../../c", "hf-hub:/etc/passwd", "git+https://evil", "mlp\n"]
NAMES += ["timm:os.system", "timm:hf-hub:a/b", "LOCAL-DIR:/etc", "a" * 201]


@pytest.mark.parametrize("case", [ADAPTER, STATE])
def test_backbones_that_nobody_may_name(monkeypatch, saved, tmp_path, case):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("a command was run"))
    for name in NAMES:
        parts = saved[case][0].copy()
        parts.config["backbone"]["source"] = name
        assert isinstance(outcome(parts.write(tmp_path / "x"), backbone=None), StateFormatError), name


@pytest.mark.parametrize("key", ["trust_remote_code", "auto_map", "custom_code"])
def test_code_that_a_file_asks_for(forge, key):
    for path in (f"config {key}", f"config backbone {key}"):
        assert isinstance(found := forge(ADAPTER, put(path, False)), StateFormatError)
        assert "code" in str(found)


def test_folders_as_backbone(saved, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text('{"architecture": "os.system"}')
    for source in ("local-dir:/etc", "local-dir:/dev", f"local-dir:{tmp_path / 'net'}"):
        for case in (ADAPTER, STATE):
            parts = saved[case][0].copy()
            parts.config["backbone"]["source"] = source
            found = outcome(parts.write(tmp_path / "x"), backbone=None)
            assert isinstance(found, NAMED if case == ADAPTER else (*NAMED, WeightsUnavailableError))


def test_a_file_starts_no_processes(saved, tmp_path):
    for case in (ADAPTER, STATE):
        parts = saved[case][0].copy()
        parts.config["params"]["num_workers"] = 10**6
        assert hostile.load(parts.write(tmp_path / "forged")).num_workers == 0


# JSON


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


@pytest.mark.parametrize("name", ODD)
def test_odd_json(clf, saved, tmp_path, name):
    adapter, state = (save(clf, kind, tmp_path / kind) for kind in ("adapter", "state"))
    (adapter / "config.json").write_bytes(ODD[name])
    (state / "manifest.json").write_bytes(ODD[name])
    (tmp_path / "receipts.jsonl").write_bytes(ODD[name])
    found = []
    assert peak(lambda: found.append((outcome(adapter), outcome(state)))) < 8 * 40 * MIB
    for error in found[0]:
        assert isinstance(error, StateFormatError)
    with pytest.raises(ReceiptError):
        verify_receipts(tmp_path / "receipts.jsonl")
    if ODD[name].isascii():
        folder = saved[ADAPTER][0].write(tmp_path / "header", ODD[name].decode())
        assert isinstance(outcome(folder), StateFormatError)


def test_unknown_keys_warn(saved, tmp_path):
    for case in (ADAPTER, STATE):
        parts = saved[case][0].copy()
        parts.config["colour"] = parts.config["settings"]["flavour"] = "red"
        with pytest.warns(UnknownKeyWarning, match=r"'colour', 'settings\.flavour'"):
            hostile.load(parts.write(tmp_path / "forged"))
    saved[STATE][0].write(tmp_path / "forged")
    manifest = json.loads((tmp_path / "forged" / "manifest.json").read_text()) | {"taste": 1}
    (tmp_path / "forged" / "manifest.json").write_text(json.dumps(hostile.checked(manifest)))
    with pytest.warns(UnknownKeyWarning, match="taste"):
        hostile.load(tmp_path / "forged")


def test_a_forged_checksum(saved, tmp_path):
    for parts, scores in saved.values():
        np.testing.assert_array_equal(outcome(parts.write(tmp_path / "x")), scores)
    parts = saved[ADAPTER][0].copy()
    config = parts.config | {"n_samples_learned": 11, "checksum": "0" * 32}
    assert "changed" in str(outcome(parts.write(tmp_path / "x", json.dumps(config))))
    parts.tensors["readout"] = parts.tensors["readout"] + 1
    assert "changed" in str(outcome(parts.write(tmp_path / "x")))


def test_gigantic_files_are_not_read(clf, tmp_path):
    for kind, name, n_bytes, error in (
        ("adapter", "config.json", 64 * MIB, StateFormatError),
        ("adapter", "adapter.safetensors", 2**40, InsufficientMemoryError),
        ("state", "ledger-", 2**40, InsufficientMemoryError),
        ("receipts", "receipts.jsonl", 2**40, InsufficientMemoryError),
    ):
        folder = save(clf, kind, tmp_path / f"{kind}-{name}")
        with next(folder.glob(f"{name}*")).open("r+b") as file:
            file.truncate(n_bytes)

        receipts = folder / "receipts.jsonl"
        call = (
            partial(verify_receipts, receipts) if kind == "receipts" else partial(hostile.load, folder)
        )

        def read(call=call, error=error):
            with pytest.raises(error):
                call()

        assert peak(read) < 32 * MIB


# forgeries with checksums that fit


def test_names_in_the_manifest(clf, tmp_path):
    folder = save(clf, "state", tmp_path / "state")
    names = json.loads((folder / "manifest.json").read_text())["files"]
    shutil.copy(folder / names["ledger"], tmp_path)
    paths = [str(tmp_path / names["ledger"]), f"../{names['ledger']}", f"{names['ledger']}\n", "..", ""]
    for name in [*paths, names["ledger"].replace("safetensors", "pkl"), names["statistics"], None, 7]:
        hostile.write_state(folder, {}, files=names | {"ledger": name})
        assert isinstance(outcome(folder), StateFormatError), name
    for found in (None, [], "x", {}, {"adapter": names["adapter"]}):
        hostile.write_state(folder, {}, files=found)
        assert isinstance(outcome(folder), StateFormatError), found


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


@pytest.mark.parametrize("case", [STATE, ("finetuned", "adapter"), ("finetuned", "state")])
def test_tensors_that_do_not_fit(saved, forge, case):
    strangers = {"x", "network.x", "anchor.x", "A", "probe", "1.label", ""}
    for part in ("tensors", "statistics", "ledger"):
        tensors = getattr(saved[case][0], part) or {}
        wrong = [(name, None) for name in sorted(strangers - tensors.keys()) if tensors]
        wrong += [(name, what) for name in tensors for what in CHANGES]
        for name, what in wrong:
            if part == "tensors" and case == ("finetuned", "state") and name.startswith("network."):
                continue  # what is published says nothing that the private anchor does not

            def change(parts, part=part, name=name, what=what):
                found = getattr(parts, part)
                tensor = CHANGES[what](found[name]) if what else torch.ones(2, 3)
                found.pop(name, None)
                if tensor is not None:
                    found[name] = tensor
                parts.with_tensors()

            assert isinstance(forge(case, change), NAMED), (name, what)


def test_ledgers_that_contradict_the_counts(forge):
    changes = [
        ("label", lambda t: t + 1),
        ("label", lambda t: t - 1),
        ("label", lambda t: t + 2**62),
        ("count", lambda t: t + 1),
        ("count", lambda t: t * 0),
        ("count", lambda t: t * (2**63 - 1)),
        ("weight", lambda t: -t),
        ("key", lambda t: t[:, :16].contiguous()),
    ]
    for column, values in changes:

        def change(parts, column=column, values=values):
            parts.ledger[f"0.{column}"] = values(parts.ledger[f"0.{column}"])

        assert isinstance(forge(STATE, change), StateFormatError), column

    def nobody(parts):
        parts.ledger = {name: t if name == "0.key" else t[:0] for name, t in parts.ledger.items()}
        parts.records["class_rows"] = [0, 0, 0]

    def another(parts):
        parts.ledger |= {name.replace("0.", "1."): t.clone() for name, t in parts.ledger.items()}

    for change in (nobody, another):
        assert isinstance(forge(STATE, change), StateFormatError), change


WRONG = {
    "config settings seed": [-1, 2**40, "5", 0.5, True, None],
    "config settings n_components": [-1, 0, 10**9, "auto", None],
    "config settings n_features": [0, 4, 10**9, None],
    "config settings n_classes": [2, 10**9],
    "config settings batch_size": [0, 10**9],
    "config settings trainable": [[], ["no such parameter"], "norm", [7]],
    "config settings kernel": ["pseudo", "ntk"],
    "config settings precision": ["float16", None],
    "config settings device": ["cuda:7", "mps", "os.system", "meta"],
    "config settings alpha": [0, -1, 1e308, "x"],
    "config settings target_scale": [0, 1e308, None],
    "config units scale_h": [0, -1, 1e308, None],
    "config projection": ["0" * 31, None],
    "config without_rows": [[0, 1, 2], [3], [-1]],
    "config feature_names": [["a", "b"], ["a", "b", 3]],
    "config preprocessing size": [[4096, 4096], [0, 1], 7],
    "config preprocessing mean": [[0, 0, 1e7], [], [None]],
    "config params backbone": ["os/system", "../x", 7],
    "config n_samples_learned": [0, -1, 2**60, 1.5],
    "config exactness": [[], None, {"exact": 1}, {"exact": True, "reasons": "x"}],
    "config receipts": [["x"], None],
    "config format": [0, 2, "1", None],
    "records class_rows": [
        None,
        3,
        [3, 3],
        [3, 3, 4, 0],
        [3.5, 4, 3],
        [True, 4, 3],
        [-1, 5, 6],
        [2**70],
    ],
    "records environment": [None, [], "x86_64"],
    "records chain": [None, 7, "x" * 65, ["x"]],
    "records residual": ["0", [], True],
    "records seconds_per_row": [None, "0"],
    "records history": [None, {}, [1], "x"],
    "records linearity": ["0", {}],
}


def test_values_that_no_estimator_writes(forge):
    for path, values in WRONG.items():
        for value in values:
            case = STATE if path.startswith("records") else ADAPTER
            assert isinstance(forge(case, put(path, value)), NAMED), (path, value)


def test_receipts_of_wrong_types(forge):
    for key in ("n_rows", "exactness", "seen_by", "chain", "previous", "checksum"):
        for value in (None, -1, {}, [7]):

            def change(parts, key=key, value=value):
                receipt = parts.receipts[0] | {key: value}
                parts.receipts = [receipt if key == "checksum" else hostile.checked(receipt)]

            assert isinstance(forge(STATE, change), ReceiptError), (key, value)


LABELS = {
    "<i8": [[0, 1, 1], [0, 1, True], [0.5, 1, 2], ["0", "1", "2"], [0, 1]],
    "<u1": [[0, 1, 300]],
    "U": [[0, 1, 2], ["a", "b", "b\0"], "abc"],
    "O": [[0, 1, [2]]],
}


def test_class_labels(forge):
    wrong = [(values, kind) for kind, lists in LABELS.items() for values in lists]
    wrong += [([0, 1, 2], kind) for kind in ("|b1", "<M8", "i8,i8", "os.system")]
    for values, kind in wrong:
        found = forge(ADAPTER, put("config classes", {"values": values, "kind": kind}))
        assert isinstance(found, StateFormatError), (values, kind)


# what would be allocated


def test_declared_sizes_allocate_nothing(forge):
    def classes(values, label):
        def change(parts):
            parts.config["classes"] = {"values": values, "kind": label}
            parts.config["settings"]["n_classes"] = len(values)
            parts.with_tensors(readout=torch.zeros(len(values), 0))

        return change

    def tall(parts):
        parts.with_tensors(readout=torch.zeros(3, 0), displacement=torch.zeros(0, 2**40))
        parts.config["settings"]["n_components"] = 0

    many = [str(i) for i in range(10**5)]
    for change in (
        put("config settings n_features", 10**6),
        put("config settings n_components", 10**9),
        put("config settings n_prompts", 10**4),
        put("config settings batch_size", 10**6),
        put("config preprocessing size", [4096, 4096]),
        put("config without_rows", [10**6] * 10**5),
        classes(["x" * 10**6, *many], "U"),
        classes(many, "<f8"),
        tall,
    ):
        found = []
        n_bytes = peak(lambda change=change, found=found: found.append(forge(ADAPTER, change)))
        assert n_bytes < 32 * MIB + 8 * (forge.folder / "adapter.safetensors").stat().st_size
        assert isinstance(found[0], (FastNTKError, np.ndarray))


@pytest.fixture
def little(monkeypatch):
    """Refuse what takes more than 4 GiB."""

    def require(n_bytes, what, advice):
        if n_bytes > 2**32:
            raise InsufficientMemoryError(f"{what} {n_bytes:,} bytes. {advice}")

    monkeypatch.setattr(rebuilding, "require", require)


PICTURES = (np.random.default_rng(0).random((12, 8, 8, 3)) * 255).astype(np.uint8)


def test_a_named_network_is_measured_before_it_is_built(little, tmp_path):
    params = {"image_size": 32, "batch_size": 4, "n_components": 8, "random_state": 0}
    clf = FastNTKClassifier("timm:test_resnet", trainable="norm", pretrained=False, **params)
    clf.fit(PICTURES, y).save_pretrained(tmp_path / "adapter")
    whole, found = Parts.of(tmp_path / "adapter"), []
    hostile.load(tmp_path / "adapter", None)  # which also warms what timm keeps
    for source, size, error in (
        ("timm:vit_base_patch32_224", [32, 32], StateMismatchError),
        ("timm:test_resnet", [4096, 4096], InsufficientMemoryError),
    ):
        parts = whole.copy()
        parts.config["backbone"]["source"], parts.config["preprocessing"]["size"] = source, size
        folder = parts.write(tmp_path / "forged")
        assert peak(lambda folder=folder: found.append(outcome(folder, None))) < 32 * MIB
        assert isinstance(found[-1], error)
