"""Files of later versions, on other machines, for other weights."""

import base64
import json

import numpy as np
import pytest
import torch
from torch import nn

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import StateFormatError, StateMismatchError, UnknownKeyWarning
from fastntk_sk.publishing import files
from fastntk_sk.store.private_state import decrypt, encrypt

PUBLIC = ["adapter of tangents", "adapter of a ladder", "adapter at a tuned anchor"]
PRIVATE = ["state", "encrypted state"]
X = np.random.default_rng(0).normal(size=(12, 3))
y = np.arange(12) % 3


def backbone(shift=0.0):
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for _ in range(2))
    net = nn.Sequential(*blocks)
    with torch.no_grad():
        net[0][0].bias += shift
    return net


def another():
    return backbone(0.125)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write a file of every kind; give folders and keys by name."""
    root, key = tmp_path_factory.mktemp("written"), base64.urlsafe_b64encode(bytes(range(32)))
    folders = {name: root / name for name in PUBLIC + PRIVATE}

    def fitted(**params):
        rows = {"batch_size": 4, "precision": "float32", "random_state": 0}
        return FastNTKClassifier(backbone(), **(rows | params)).fit(X, y)

    fitted(trainable="norm").save_pretrained(folders[PUBLIC[0]])
    fitted(trainable="ladder", n_components=5).save_pretrained(folders[PUBLIC[1]])
    tuned = fitted(trainable="norm", anchor="finetuned", max_epochs=2)
    tuned.save_pretrained(folders[PUBLIC[2]])
    tuned.save(folders["state"])
    tuned.save(folders["encrypted state"], key=key)
    return folders, {"encrypted state": key}


def load(name, folder, key=None, net=backbone):
    if name in PUBLIC:
        return FastNTKClassifier.from_pretrained(folder, backbone=net)
    return FastNTKClassifier.load(folder, backbone=net, key=key)


def copied(folder, target):
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def header(folder, key=None):
    """Return the configuration of a folder, its tensors, and the name of the file that holds them."""
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


def rewrite(name, target, key, changes, in_manifest=False):
    """Change a folder as a later version would have written it, and sign it again."""
    config, tensors, old = header(target, key)
    config = resigned(config, {} if in_manifest else changes)
    data = files.dump(tensors, {"config": files.canonical(config).decode()})
    (target / old).unlink()
    if name in PUBLIC:
        (target / old).write_bytes(data)
        (target / "config.json").write_bytes(files.canonical(config))
        return
    data = encrypt(data, key) if key else data
    new = f"adapter-{files.digest(data)}.{old.partition('.')[2]}"
    (target / new).write_bytes(data)
    manifest = json.loads((target / "manifest.json").read_text())
    names = {"files": manifest["files"] | {"adapter": new}}
    manifest = resigned(manifest, names | (changes if in_manifest else {}))
    (target / "manifest.json").write_bytes(files.canonical(manifest))


@pytest.mark.parametrize("name", PUBLIC + PRIVATE)
def test_a_later_version_added_a_key(written, name, tmp_path):
    folders, keys = written
    later, key = copied(folders[name], tmp_path / "later"), keys.get(name)
    setup = header(later, key)[0]["setup"] | {"flavour": 1}
    rewrite(name, later, key, {"colour": "red", "setup": setup})
    with pytest.warns(UnknownKeyWarning) as caught:
        clf = load(name, later, key)
    assert len(caught) == 2
    assert "'colour'" in str(caught[0].message)
    assert "'setup.flavour'" in str(caught[1].message)
    as_it_was = load(name, folders[name], key)
    np.testing.assert_array_equal(clf.decision_function(X), as_it_was.decision_function(X))


@pytest.mark.parametrize(
    ("name", "in_manifest"),
    [(name, False) for name in PUBLIC + PRIVATE] + [(name, True) for name in PRIVATE],
)
def test_a_newer_format_asks_for_an_upgrade(written, name, in_manifest, tmp_path):
    folders, keys = written
    later, key = copied(folders[name], tmp_path / "later"), keys.get(name)
    rewrite(name, later, key, {"format": 2, "version": "9.0"}, in_manifest)
    with pytest.raises(StateFormatError, match=r"got 2 written by fastntk_sk 9\.0\. Upgrade"):
        load(name, later, key)


@pytest.mark.parametrize("name", PUBLIC + PRIVATE)
def test_other_weights_are_refused(written, name):
    folders, keys = written
    digest = header(folders[name], keys.get(name))[0]["backbone"]["digest"]
    with pytest.raises(StateMismatchError, match=f"Expected the weights {digest} of backbone"):
        load(name, folders[name], keys.get(name), another)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o444])
@pytest.mark.parametrize("name", PUBLIC + PRIVATE)
def test_modes_do_not_matter(written, name, mode, tmp_path):
    folders, keys = written
    copy = copied(folders[name], tmp_path / "copy")
    for file in copy.iterdir():
        file.chmod(mode)
    clf, as_it_was = (load(name, folder, keys.get(name)) for folder in (copy, folders[name]))
    np.testing.assert_array_equal(clf.decision_function(X), as_it_was.decision_function(X))
