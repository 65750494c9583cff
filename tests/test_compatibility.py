"""Files that format 1 left behind are loaded forever."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastntk_sk import FastNTKClassifier, files
from fastntk_sk.exceptions import (
    StateFormatError,
    StateMismatchError,
    UnknownKeyWarning,
    UnknownSampleError,
)
from fastntk_sk.private_state import decrypt, encrypt

FIXTURES = Path(__file__).parent / "fixtures" / "format_1"
PUBLIC = ["adapter_pretrained", "adapter_pseudo", "adapter_finetuned"]
PRIVATE = ["state_pretrained", "state_pseudo", "state_finetuned", "state_merged", "state_encrypted"]
# of scores, by precision: as they were saved, and after another solve, which magnifies rounding
CLOSE = {"float32": 1e-6, "float64": 1e-12}
SOLVED = {"float32": 1e-5, "float64": 1e-10}


def backbone():
    """The network of every fixture; the files hold a digest of these weights."""
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    weights = {
        "0.weight": [
            [0.5, -0.25, 0.125],
            [-0.375, 0.75, 0.25],
            [0.625, 0.5, -0.5],
            [-0.125, -0.625, 0.875],
        ],
        "0.bias": [0.25, -0.5, 0.125, 0.0],
        "1.weight": [1.0, 0.75, 1.25, 0.5],
        "1.bias": [0.0, 0.125, -0.25, 0.5],
    }
    net.load_state_dict({n: torch.tensor(w, dtype=torch.float32) for n, w in weights.items()})
    return net


def another():
    net = backbone()
    with torch.no_grad():
        net[0].bias[0] += 0.125
    return net


def expectation(name):
    expected = json.loads((FIXTURES / name / "expected.json").read_text())
    return expected | {"X": np.array(expected["X"]), "scores": np.array(expected["scores"])}


def load(name, folder=None, net=backbone):
    folder = FIXTURES / name / "saved" if folder is None else folder
    if name in PUBLIC:
        return FastNTKClassifier.from_pretrained(folder, backbone=net)
    return FastNTKClassifier.load(folder, backbone=net, key=expectation(name)["key"])


def header(folder, key=None):
    """Return the configuration of a fixture, its tensors, and the name of the file that holds them."""
    manifest = folder / "manifest.json"
    name = "adapter.safetensors"
    if manifest.exists():
        name = json.loads(manifest.read_text())["files"]["adapter"]
    data = (folder / name).read_bytes()
    tensors, metadata = files.parse_tensors(decrypt(data, key, name) if key else data, name)
    return json.loads(metadata["config"]), tensors, name


def resigned(document, changes):
    rest = {key: value for key, value in document.items() if key != "digest"}
    return files.signed(rest | changes)


def rewritten(name, target, changes, in_manifest=False):
    """Copy a fixture as a later version would have written it: changed, and signed again."""
    shutil.copytree(FIXTURES / name / "saved", target)
    key = expectation(name).get("key")
    config, tensors, old = header(target, key)
    config = resigned(config, {} if in_manifest else changes)
    data = files.dump(tensors, {"config": files.canonical(config).decode()})
    (target / old).unlink()
    if name in PUBLIC:
        (target / old).write_bytes(data)
        (target / "config.json").write_bytes(files.canonical(config))
        return target
    data = encrypt(data, key) if key else data
    new = f"adapter-{files.digest(data)}.{old.partition('.')[2]}"
    (target / new).write_bytes(data)
    manifest = json.loads((target / "manifest.json").read_text())
    names = {"files": manifest["files"] | {"adapter": new}}
    manifest = resigned(manifest, names | (changes if in_manifest else {}))
    (target / "manifest.json").write_bytes(files.canonical(manifest))
    return target


@pytest.mark.parametrize("name", PUBLIC + PRIVATE)
def test_it_loads_and_predicts(name):
    expected, clf = expectation(name), load(name)
    np.testing.assert_allclose(
        clf.decision_function(expected["X"]),
        expected["scores"],
        rtol=CLOSE[clf.precision],
        atol=CLOSE[clf.precision],
    )
    assert clf.classes_.tolist() == expected["classes"]
    assert clf.classes_.dtype.kind == expected["kind"]
    assert clf.n_samples_learned_ == expected["n_samples_learned"]
    assert clf.n_samples_forgotten_ == expected["n_samples_forgotten"]
    assert [receipt["n_rows"] for receipt in clf.receipts_] == expected["receipts"]
    assert clf.get_params()["alpha"] == expected["alpha"]


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.filterwarnings("ignore::fastntk_sk.exceptions.NumericalDriftWarning")
def test_it_goes_on(name, tmp_path):
    expected, clf = expectation(name), load(name)
    X, tolerance = expected["X"], SOLVED[clf.precision]
    rows = np.array(expected["forget"]["X"])
    asked = {"y_forget": expected["forget"]["y"], "sample_ids": expected["forget"]["sample_ids"]}
    clf.unlearn(rows, **asked)
    after = np.array(expected["forget"]["scores"])
    np.testing.assert_allclose(clf.decision_function(X), after, rtol=tolerance, atol=tolerance)
    assert [receipt["n_rows"] for receipt in clf.receipts_] == [*expected["receipts"], len(rows)]
    assert clf.receipts_[-1]["n_rows_left_under_sample_ids"] == 0
    with pytest.raises(UnknownSampleError):
        clf.unlearn(rows, **asked)
    clf.save(tmp_path, key=expected["key"])
    again = load(name, tmp_path)
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    again.partial_fit(rows, asked["y_forget"], sample_ids=asked["sample_ids"])
    np.testing.assert_allclose(
        again.decision_function(X), expected["scores"], rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", PUBLIC + PRIVATE)
def test_a_later_version_added_a_key(name, tmp_path):
    X = expectation(name)["X"]
    key = expectation(name).get("key")
    setup = header(FIXTURES / name / "saved", key)[0]["setup"] | {"flavour": 1}
    rewritten(name, tmp_path / "later", {"colour": "red", "setup": setup})
    with pytest.warns(UnknownKeyWarning) as caught:
        clf = load(name, tmp_path / "later")
    assert len(caught) == 2
    assert "'colour'" in str(caught[0].message)
    assert "'setup.flavour'" in str(caught[1].message)
    np.testing.assert_array_equal(clf.decision_function(X), load(name).decision_function(X))


@pytest.mark.parametrize(
    ("name", "in_manifest"),
    [(name, False) for name in PUBLIC + PRIVATE] + [(name, True) for name in PRIVATE],
)
def test_a_newer_format_asks_for_an_upgrade(name, in_manifest, tmp_path):
    rewritten(name, tmp_path / "later", {"format": 2, "version": "9.0"}, in_manifest)
    with pytest.raises(StateFormatError, match=r"got 2 written by fastntk_sk 9\.0\. Upgrade"):
        load(name, tmp_path / "later")


@pytest.mark.parametrize("name", PUBLIC + PRIVATE)
def test_other_weights_are_refused(name):
    key = expectation(name).get("key")
    digest = header(FIXTURES / name / "saved", key)[0]["backbone"]["digest"]
    with pytest.raises(StateMismatchError, match=f"Expected the weights {digest} of backbone"):
        load(name, net=another)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o444])
@pytest.mark.parametrize("name", PUBLIC + PRIVATE)
def test_modes_do_not_matter(name, mode, tmp_path):
    X = expectation(name)["X"]
    shutil.copytree(FIXTURES / name / "saved", tmp_path / "copy")
    for file in (tmp_path / "copy").iterdir():
        file.chmod(mode)
    clf = load(name, tmp_path / "copy")
    np.testing.assert_array_equal(clf.decision_function(X), load(name).decision_function(X))


def test_git_stores_them_byte_for_byte():
    paths = [str(file) for file in FIXTURES.rglob("*") if file.is_file()]
    assert len(paths) == 2 * len(PUBLIC) + 5 * len(PRIVATE) + len(PUBLIC + PRIVATE)
    root = Path(__file__).parent.parent
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("this is no checkout")
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=root, capture_output=True)
    assert ignored.stdout == b""
    text = subprocess.run(
        ["git", "check-attr", "text", *paths], cwd=root, capture_output=True, check=True
    )
    assert text.stdout.count(b": text: unset\n") == len(paths)
