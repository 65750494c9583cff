"""Damaged and forged adapters: each is a named error, and nothing is executed, followed or allocated."""

import os
import pickle
import shutil
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from hostile import ADAPTER, CHANGES, MIB, NAMED, ODD, Parts, X, fitted, outcome, peak, put, y

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import (
    FastNTKError,
    InsufficientMemoryError,
    StateFormatError,
    StateMismatchError,
    UnknownKeyWarning,
)
from fastntk_sk.publishing import rebuilding


@pytest.fixture(scope="module")
def clf():
    return fitted()


@pytest.fixture
def file(clf, tmp_path):
    """The one file of a public adapter that is read."""
    clf.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter" / "adapter.safetensors"


def test_damaged_files(clf, file):
    data, draws = file.read_bytes(), np.random.default_rng(0)
    # half of the bits are among the first bytes, where lengths, names and shapes are
    early, anywhere = (draws.integers(8 * n, size=8) for n in (2048, len(data)))
    for bit in map(int, [*early, *anywhere]):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        found = outcome(file.parent)
        if not isinstance(found, StateFormatError):  # a bit of what is ignored
            np.testing.assert_array_equal(found, clf.decision_function(X))
    header = 8 + int.from_bytes(data[:8], "little")
    for n_bytes in (0, 7, 8, header, len(data) // 2, len(data) - 2):
        file.write_bytes(data[:n_bytes])
        assert isinstance(outcome(file.parent), StateFormatError)
    file.unlink()
    assert "is missing" in str(outcome(file.parent))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_what_is_no_file(file, tmp_path):
    kept = shutil.move(file, tmp_path / "kept")
    for target in (kept, "/dev/zero", tmp_path / "no", file):
        file.symlink_to(target)
        assert isinstance(outcome(file.parent), StateFormatError)
        file.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(file)
        assert isinstance(outcome(file.parent), StateFormatError)
        os.unlink(file) if make is os.mkfifo else os.rmdir(file)


def test_the_cache_of_the_hub(clf, file, tmp_path, monkeypatch):
    """There, a link from a snapshot into the blobs is followed, and no other."""
    repository = tmp_path / "models--me--adapter"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    shutil.copy(file, blobs / "x")
    link = snapshot / file.name
    link.symlink_to("../../blobs/x")
    monkeypatch.chdir(snapshot)
    for folder in (snapshot, Path(".")):
        np.testing.assert_array_equal(outcome(folder), clf.decision_function(X))
    for target in ("../../../other/blobs/x", "../../blobs/deep/x", "../../x"):
        outside = snapshot / target
        outside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, outside.resolve())
        link.unlink()
        link.symlink_to(target)
        assert "link out of" in str(outcome(snapshot))


def test_a_pickle_is_not_opened(file, tmp_path):
    payload = hostile.Payload(tmp_path / "trace")
    torch.save(payload, tmp_path / "zip")
    for bomb in (pickle.dumps(payload), (tmp_path / "zip").read_bytes()):
        file.write_bytes(bomb)
        assert isinstance(outcome(file.parent), StateFormatError)
    assert not payload.trace.exists()
    pickle.loads(pickle.dumps(payload))
    assert payload.trace.exists()


def test_gigantic_files_are_not_read(file):
    with file.open("r+b") as opened:
        opened.truncate(2**40)
    found = []
    assert peak(lambda: found.append(outcome(file.parent))) < 32 * MIB
    assert isinstance(found[0], InsufficientMemoryError)


# the configuration


NAMES = ["os.system", "builtins.eval", "https://evil/x", "file:///etc", "../x", "~/x", "resnet18; x", ""]
NAMES += ["hf-hub:../../x", "hf-hub:a/b@../../c", "hf-hub:/etc/passwd", "git+https://evil", "mlp\n"]
NAMES += ["timm:os.system", "timm:hf-hub:a/b", "LOCAL-DIR:/etc", "a" * 201]
NAMES += ["local-dir:/etc", "local-dir:/dev"]


def test_backbones_that_nobody_may_name(monkeypatch, saved, tmp_path):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("a command was run"))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text('{"architecture": "os.system"}')
    for name in [*NAMES, f"local-dir:{tmp_path / 'net'}"]:
        parts = saved[ADAPTER][0].copy()
        parts.config["backbone"]["source"] = name
        assert isinstance(outcome(parts.write(tmp_path / "x"), backbone=None), NAMED), name


@pytest.mark.parametrize("key", ["trust_remote_code", "backbone auto_map", "settings custom_code"])
def test_code_that_a_file_asks_for(forge, key):
    assert isinstance(found := forge(ADAPTER, put(f"config {key}", False)), StateFormatError)
    assert "code" in str(found)


def test_parameters_that_a_file_does_not_decide(saved, tmp_path):
    """Processes, what is kept of rows, what SGD is given, and a folder to be read at the next fit."""
    parts = saved[ADAPTER][0].copy()
    wanted = {"num_workers": 10**6, "keep": "features", "finetune_params": {"verbose": 5}}
    parts.config["params"] |= wanted | {"backbone": "local-dir:/etc"}
    assert not set(wanted) & set(saved[ADAPTER][0].config["params"])
    for source in (None, "local-dir:/etc"):
        parts.config["backbone"]["source"] = source
        clf = hostile.load(parts.write(tmp_path / "forged"))
        assert (clf.num_workers, clf.keep, clf.finetune_params) == (0, None, None)
        assert clf.backbone is hostile.tiny


@pytest.mark.parametrize("name", [name for name in ODD if ODD[name].isascii()])
def test_odd_json(saved, tmp_path, name):
    folder, found = saved[ADAPTER][0].write(tmp_path / "header", ODD[name].decode()), []
    assert peak(lambda: found.append(outcome(folder))) < 8 * 40 * MIB
    assert isinstance(found[0], StateFormatError)


def test_unknown_keys_warn(saved, tmp_path):
    parts = saved[ADAPTER][0].copy()
    parts.config["colour"] = parts.config["settings"]["flavour"] = "red"
    with pytest.warns(UnknownKeyWarning, match=r"'colour', 'settings\.flavour'"):
        hostile.load(parts.write(tmp_path / "forged"))


def test_a_forged_checksum(saved, tmp_path):
    parts, scores = saved[ADAPTER]
    np.testing.assert_array_equal(outcome(parts.write(tmp_path / "x")), scores)
    changed = parts.copy()
    config = changed.config | {"n_samples_learned": 11, "checksum": "0" * 32}
    assert "changed" in str(outcome(changed.write(tmp_path / "x", hostile.json.dumps(config))))
    changed.tensors["readout"] = changed.tensors["readout"] + 1
    assert "changed" in str(outcome(changed.write(tmp_path / "x")))


@pytest.mark.parametrize("case", [ADAPTER, ("finetuned", "adapter")])
def test_tensors_that_do_not_fit(saved, forge, case):
    tensors = saved[case][0].tensors
    wrong = [(name, lambda t: torch.ones(2, 3)) for name in ("x", "network.x", "")]
    wrong += [(name, change) for name in tensors for change in CHANGES.values()]
    for name, value in wrong:

        def change(parts, name=name, value=value):
            tensor = value(parts.tensors.pop(name, None))
            parts.with_tensors(**({} if tensor is None else {name: tensor}))

        assert isinstance(forge(case, change), NAMED), name


WRONG = {
    "settings seed": [-1, 2**40, "5", 0.5, True, None],
    "settings n_components": [-1, 0, 10**9, "auto", None],
    "settings n_features": [0, 4, 10**9, None],
    "settings n_classes": [2, 10**9],
    "settings batch_size": [0, 10**9],
    "settings trainable": [[], ["no such parameter"], "norm", [7]],
    "settings anchor": ["finetuned", "trained", "nowhere"],
    "settings head": ["fc", 7],
    "settings kernel": ["pseudo", "ntk"],
    "settings precision": ["float16", None],
    "settings augment": ["rotate", True, "flip"],
    "settings device": ["cuda:7", "mps", "os.system", "meta"],
    "settings alpha": [0, -1, 1e308, "x"],
    "settings temperature": [0, -1, 1e308, "x"],
    "settings target_scale": [0, 1e308, None],
    "units scale_h": [0, -1, 1e308, None],
    "projection": ["0" * 31, None],
    "without_rows": [[0, 1, 2], [3], [-1]],
    "feature_names": [["a", "b"], ["a", "b", 3]],
    "preprocessing size": [[4096, 4096], [0, 1], 7],
    "preprocessing mean": [[0, 0, 1e7], [], [None]],
    "n_samples_learned": [0, -1, 2**60, 1.5],
    "exactness": [[], None, {"exact": 1}, {"exact": True, "reasons": "x"}],
    "receipts": [["x"], None],
    "format": [0, 2, "1", None],
    "backbone base_model": ["a](https://evil)", "<b>", "a\nb", ""],
    "backbone revision": ["`x`", "| x |", "a\x1b[2J"],
}


LABELS = {
    "<i8": [[0, 1, 1], [0, 1, True], [0.5, 1, 2], ["0", "1", "2"], [0, 1]],
    "<u1": [[0, 1, 300]],
    "U": [[0, 1, 2], ["a", "b", "b\0"], "abc"],
    "O": [[0, 1, [2]]],
} | {kind: [[0, 1, 2]] for kind in ("|b1", "<M8", "i8,i8", "os.system")}


def test_values_that_no_estimator_writes(forge):
    classes = [{"values": v, "kind": kind} for kind, values in LABELS.items() for v in values]
    for path, values in (WRONG | {"classes": classes}).items():
        for value in values:
            assert isinstance(forge(ADAPTER, put(f"config {path}", value)), NAMED), (path, value)


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


def test_batches_fit_in_memory(monkeypatch, tmp_path):
    """A batch is padded to its size, which a file could set to gigabytes."""
    monkeypatch.setenv("FASTNTK_SK_MEMORY_LIMIT", str(200 * MIB))
    params = {"image_size": 32, "batch_size": 4, "n_components": 8, "random_state": 0}
    clf = FastNTKClassifier("timm:test_resnet", trainable="norm", pretrained=False, **params)
    clf.fit(PICTURES, y).save_pretrained(tmp_path / "adapter")
    parts, scores = Parts.of(tmp_path / "adapter"), clf.decision_function(PICTURES)
    parts.config["settings"]["batch_size"] = parts.config["params"]["batch_size"] = 2**16
    found, folder = [], parts.write(tmp_path / "forged")
    assert peak(lambda: found.append(hostile.load(folder, None).decision_function(PICTURES))) < 250 * MIB
    np.testing.assert_allclose(found[0], scores, atol=1e-5)
