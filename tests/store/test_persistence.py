"""The saved estimator predicts bitwise the same, goes on unlearning, and is private."""

import stat

import numpy as np
import pytest
import torch
from cryptography.fernet import Fernet

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import (
    DecryptionError,
    PublicationError,
    StateFormatError,
    StateMismatchError,
)


def make(**changes):
    return FastNTKClassifier(**({"random_state": 0, "n_components": 32} | changes))


@pytest.mark.parametrize(
    ("labels", "dtype", "encrypted"),
    [("abc", None, True), ([5, -1, 7], None, False), ([0, 1, 2], float, False), ("pqr", object, False)],
)
def test_round_trip(blobs, tmp_path, labels, dtype, encrypted):
    X, y = blobs
    names = np.array([*labels], dtype)[y]
    key = Fernet.generate_key() if encrypted else None
    clf = make(random_state=np.random.RandomState(3)).fit(X, names, sample_ids=range(60)).unlearn(X[:3])
    clf.save(tmp_path / "model", key=key)
    again = FastNTKClassifier.load(tmp_path / "model", key=key)
    assert again.get_params() == clf.get_params() | {"random_state": again.random_state}
    assert isinstance(again.random_state, int)
    assert again.classes_.tolist() == clf.classes_.tolist()
    assert again.classes_.dtype == clf.classes_.dtype
    assert again.receipts_ == clf.receipts_
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    # and goes on
    for model in (clf, again):
        model.unlearn(X[3:6], sample_ids=[3, 4, 5]).partial_fit(X[:1], names[:1])
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    assert (again.n_samples_learned_, again.n_samples_forgotten_) == (55, 6)


def test_round_trip_of_prompts_and_modules(digits, tmp_path):
    import timm

    X, y = digits[0][:16], digits[1][:16] % 2

    def net():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return timm.create_model("test_vit", img_size=32)

    clf = make(backbone=net(), trainable="prompt", image_size=32, batch_size=4).fit(X, y)
    clf.save(tmp_path)
    with pytest.raises(StateMismatchError, match="backbone=..."):
        FastNTKClassifier.load(tmp_path)
    again = FastNTKClassifier.load(tmp_path, backbone=net)
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    again.unlearn(X[:4])
    with pytest.raises(StateMismatchError, match="weights"):
        FastNTKClassifier.load(tmp_path, backbone=lambda: timm.create_model("test_vit", img_size=32))


def test_set_params_after_fit_does_not_reach_the_saved_state(blobs, tmp_path):
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(blobs[0], columns=list("abcd"))
    clf = make().fit(X, blobs[1])
    expected = clf.decision_function(X)
    clf.set_params(backbone="resnet18", trainable="head", alpha=9.0)
    clf.save(tmp_path)
    again = FastNTKClassifier.load(tmp_path)
    np.testing.assert_array_equal(again.decision_function(X), expected)
    assert (again.backbone, again.trainable) == ("mlp", "head")
    assert again.feature_names_in_.tolist() == list("abcd")


def test_files_are_private_and_saving_again_mends_them(blobs, tmp_path):
    X, y = blobs
    clf = make().fit(X, y)
    clf.save(tmp_path)
    first = {file.name for file in tmp_path.iterdir()}
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
        file.chmod(0o644)
    clf.save(tmp_path)
    assert FastNTKClassifier.load(tmp_path).n_samples_learned_ == 60
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in tmp_path.iterdir())
    clf.unlearn(X[:1]).save(tmp_path)
    after = {file.name for file in tmp_path.iterdir()}
    assert len(after) == 5
    assert after & first == {"manifest.json"}  # files of the state before are gone


@pytest.mark.parametrize("name", ["adapter-model.safetensors", "README.md"])
def test_a_folder_with_other_things_is_left_alone(blobs, tmp_path, name):
    clf = make().fit(*blobs)
    (tmp_path / name).write_text("x")
    with pytest.raises(StateFormatError, match="something else"):
        clf.save(tmp_path)
    if name == "README.md":
        with pytest.raises(PublicationError, match=r"README\.md"):
            clf.save_pretrained(tmp_path)
    else:
        clf.save_pretrained(tmp_path)
    assert (tmp_path / name).read_text() == "x"


def test_a_public_adapter_keeps_away_from_private_files(blobs, tmp_path):
    """As an interrupted first save leaves them, without a manifest."""
    clf = make().fit(*blobs)
    clf.save(tmp_path)
    (tmp_path / "manifest.json").unlink()
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(PublicationError, match="private state"):
        clf.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == before


def test_an_encrypted_state_hides_what_it_holds(blobs, tmp_path):
    X, y = blobs
    clf = make().fit(X, y).unlearn(X[:2])
    clf.save(tmp_path, key=Fernet.generate_key().decode())
    assert len([*tmp_path.glob("*.fernet")]) == 4
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert clf.receipts_[0]["chain"].encode() not in content
    clf.save(tmp_path)
    assert not [*tmp_path.glob("*.fernet")]


def test_keys_that_do_not_fit(blobs, tmp_path):
    clf = make().fit(*blobs)
    for key in ("short", b"x" * 44, 7):
        with pytest.raises(DecryptionError, match="32"):
            clf.save(tmp_path, key=key)
    assert not list(tmp_path.iterdir())
    clf.save(tmp_path)
    with pytest.raises(DecryptionError, match="is not encrypted"):
        FastNTKClassifier.load(tmp_path, key=Fernet.generate_key())
    clf.save(tmp_path, key=Fernet.generate_key())
    with pytest.raises(DecryptionError, match="Pass the key"):
        FastNTKClassifier.load(tmp_path)
    with pytest.raises(DecryptionError, match="another key"):
        FastNTKClassifier.load(tmp_path, key=Fernet.generate_key())


def test_no_folder_and_a_later_format(blobs, tmp_path):
    with pytest.raises(StateFormatError, match="missing"):
        FastNTKClassifier.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99, "version": "9"}')
    with pytest.raises(StateFormatError, match="Upgrade"):
        FastNTKClassifier.load(tmp_path)
