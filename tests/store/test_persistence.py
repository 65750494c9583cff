"""The saved estimator predicts bitwise the same, goes on unlearning, and is private."""

import copy
import secrets
import stat
import threading

import numpy as np
import pytest
import torch

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import (
    DecryptionError,
    NoPrivateStateError,
    PublicationError,
    StaleStateError,
    StateFormatError,
    StateLockedError,
    StateMismatchError,
    UnknownSampleError,
)


def make(**changes):
    return FastNTKClassifier(**({"random_state": 0, "n_components": 32} | changes))


@pytest.mark.parametrize(
    ("labels", "dtype", "key"),
    [
        ("abc", None, bytes(range(32))),
        ([5, -1, 7], None, None),
        ([0, 1, 2], float, "it's a passphrase"),
        ("pqr", object, None),
    ],
)
def test_round_trip(blobs, tmp_path, labels, dtype, key):
    X, y = blobs
    names = np.array([*labels], dtype)[y]
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
    again.save(tmp_path / "model", key=key)
    assert FastNTKClassifier.load(tmp_path / "model", key=key).receipts_ == again.receipts_


def test_round_trip_of_prompts_and_modules(digits, tmp_path):
    import timm

    X, y = digits[0][:16], digits[1][:16] % 2

    def net():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return timm.create_model("test_vit", img_size=32)

    path = tmp_path / "model"
    clf = make(backbone=net(), trainable="prompt", image_size=32, batch_size=4).fit(X, y)
    clf.save(path)
    with pytest.raises(StateMismatchError, match="backbone=..."):
        FastNTKClassifier.load(path)
    again = FastNTKClassifier.load(path, backbone=net)
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    again.unlearn(X[:4])
    with pytest.raises(StateMismatchError, match="weights"):
        FastNTKClassifier.load(path, backbone=lambda: timm.create_model("test_vit", img_size=32))


def test_set_params_after_fit_does_not_reach_the_saved_state(blobs, tmp_path):
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(blobs[0], columns=list("abcd"))
    clf = make().fit(X, blobs[1])
    expected = clf.decision_function(X)
    clf.set_params(backbone="resnet18", trainable="head", alpha=9.0)
    clf.save(tmp_path / "model")
    again = FastNTKClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.decision_function(X), expected)
    assert (again.backbone, again.trainable) == ("mlp", "head")
    assert again.feature_names_in_.tolist() == list("abcd")


def test_one_file_for_its_owner_in_a_folder_of_others(blobs, tmp_path):
    """A file that a file manager leaves there, say, is no obstacle."""
    (tmp_path / ".DS_Store").write_bytes(b"x")
    clf = make().fit(*blobs)
    for _ in range(2):
        clf.unlearn(blobs[0][clf.n_samples_forgotten_][None]).save(tmp_path / "new" / "model")
    clf.save(tmp_path / "model.fastntk")
    assert {file.name for file in tmp_path.iterdir()} == {".DS_Store", "new", "model.fastntk"}
    assert stat.S_IMODE((tmp_path / "model.fastntk").stat().st_mode) == 0o600


def test_adapter_and_state_are_kept_apart(blobs, tmp_path):
    clf = make().fit(*blobs)
    clf.save(tmp_path / "model.fastntk")
    with pytest.raises(PublicationError, match="private state"):
        clf.save_pretrained(tmp_path)
    clf.save_pretrained(tmp_path / "public")
    with pytest.raises(NoPrivateStateError, match="from_pretrained"):
        FastNTKClassifier.load(tmp_path / "public")
    for path in (tmp_path / "model.fastntk", str(tmp_path / "model.fastntk")):
        with pytest.raises(StateFormatError, match="load"):
            FastNTKClassifier.from_pretrained(path)
    with pytest.raises(StateFormatError, match="folder"):
        clf.save(tmp_path)
    (tmp_path / "other").write_text("a letter")
    with pytest.raises(StateFormatError, match="other"):
        clf.save(tmp_path / "other", overwrite=True)
    assert (tmp_path / "other").read_text() == "a letter"


def test_an_encrypted_state_hides_what_it_holds(blobs, tmp_path):
    X, y = blobs
    clf = make().fit(X, y).unlearn(X[:2])
    clf.save(tmp_path / "plain")
    clf.save(tmp_path / "model", key="secret")
    chain = clf.receipts_[0]["chain"].encode()
    assert chain in (tmp_path / "plain").read_bytes()
    assert chain not in (tmp_path / "model").read_bytes()


def test_keys_that_do_not_fit(blobs, tmp_path):
    clf, path = make().fit(*blobs), tmp_path / "model"
    for key in (b"short", b"x" * 44, "", 7):
        with pytest.raises(ValueError, match="32 bytes"):
            clf.save(path, key=key)
    assert not path.exists()
    clf.save(path)
    for call in (FastNTKClassifier.load, clf.save):
        with pytest.raises(DecryptionError, match="not encrypted"):
            call(path, key="secret")
    secret = tmp_path / "secret"
    clf.save(secret, key="secret")
    for key, message in ((None, "Pass the key"), ("other", "another key"), (bytes(32), "another key")):
        with pytest.raises(DecryptionError, match=message):
            FastNTKClassifier.load(secret, key=key)
    # what was encrypted does not become plain
    for model in (clf, FastNTKClassifier.load(secret, key="secret")):
        with pytest.raises(DecryptionError, match="readable"):
            model.save(tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_another_key(blobs, tmp_path):
    clf, path, key = make().fit(*blobs), tmp_path / "model", secrets.token_bytes(32)
    clf.save(path, key="old")
    FastNTKClassifier.rekey(path, key="old", new_key=key)
    with pytest.raises(DecryptionError, match="another key"):
        FastNTKClassifier.load(path, key="old")
    with pytest.raises(DecryptionError, match="another key"):
        FastNTKClassifier.rekey(path, key="old", new_key="x")
    with pytest.raises(ValueError, match="Expected"):
        FastNTKClassifier.rekey(path, key=key, new_key=None)
    clf.unlearn(blobs[0][:1]).save(path, key=key)
    assert FastNTKClassifier.load(path, key=key).n_samples_learned_ == 59


def test_no_file_no_state_and_a_later_format(blobs, tmp_path):
    import sqlite3

    path = tmp_path / "model"
    for call in (FastNTKClassifier.load, lambda path: FastNTKClassifier.open(path).__enter__()):
        with pytest.raises(StateFormatError, match="no file"):
            call(path)
    path.touch()
    with pytest.raises(StateFormatError, match="interrupted"):
        FastNTKClassifier.load(path)
    make().fit(*blobs).save(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StateFormatError, match="Upgrade"):
        FastNTKClassifier.load(path)


def test_a_save_undoes_nobodys_deletion(blobs, tmp_path):
    X, path = blobs[0], tmp_path / "model"
    make().fit(*blobs).save(path)
    first, second = FastNTKClassifier.load(path), FastNTKClassifier.load(path)
    first.unlearn(X[:2]).save(path)
    with pytest.raises(StaleStateError, match=r"2 rows at 20\d\d"):
        second.unlearn(X[5:6]).save(path)
    assert FastNTKClassifier.load(path).receipts_ == first.receipts_
    # nor does a fit, or a copy that was made before
    stranger = make().fit(*blobs)
    with pytest.raises(StaleStateError, match="2 rows"):
        stranger.save(path)
    before = copy.deepcopy(first)
    first.partial_fit(X[:1], blobs[1][:1]).save(path)
    with pytest.raises(StaleStateError, match="learned there meanwhile"):
        before.save(path)
    with pytest.raises(StaleStateError):
        first.fit(*blobs).save(path)
    stranger.save(path, overwrite=True)
    assert FastNTKClassifier.load(path).receipts_ == []
    stranger.unlearn(X[:1]).save(path)
    second.save(tmp_path / "elsewhere")


def test_a_copy_that_is_encrypted_locks_nobody_out(blobs, tmp_path):
    clf = make().fit(*blobs)
    clf.save(tmp_path / "plain")
    clf.save(tmp_path / "copy", key="secret")
    clf.unlearn(blobs[0][:1]).save(tmp_path / "plain")
    with pytest.raises(DecryptionError, match="readable"):
        clf.save(tmp_path / "another")
    assert FastNTKClassifier.load(tmp_path / "plain").n_samples_learned_ == 59


def test_a_save_that_waits_writes_what_is_there_then(blobs, tmp_path):
    """Another thread forgets and saves the same estimator meanwhile."""
    path, clf = tmp_path / "model", make().fit(*blobs)
    clf.save(path)
    with FastNTKClassifier.open(path):
        saving = threading.Thread(target=clf.save, args=(path,))
        saving.start()
        clf.unlearn(blobs[0][:1])
    saving.join()
    assert FastNTKClassifier.load(path).receipts_ == clf.receipts_


def test_open_waits_saves_and_undoes(blobs, tmp_path):
    X, path = blobs[0], tmp_path / "model"
    make().fit(*blobs).save(path)
    with FastNTKClassifier.open(path) as clf:
        clf.unlearn(X[:1])
        assert FastNTKClassifier.load(path).n_samples_learned_ == 60  # who reads need not wait
        with (
            pytest.raises(StateLockedError, match="call again"),
            FastNTKClassifier.open(path, timeout=0.1),
        ):
            pass
    with pytest.raises(UnknownSampleError), FastNTKClassifier.open(path) as clf:
        clf.unlearn(X[1:2]).unlearn(X[:1])
    assert FastNTKClassifier.load(path).n_samples_learned_ == 59

    def forget(row):
        with FastNTKClassifier.open(path) as clf:
            clf.unlearn(X[row : row + 1])

    threads = [threading.Thread(target=forget, args=(row,)) for row in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = FastNTKClassifier.load(path)
    assert again.n_samples_learned_ == 55
    assert len(again.receipts_) == 5
    clf = again.unlearn(X[5:6])  # what was opened or loaded may be saved elsewhere and go on
    clf.save(path)
    with FastNTKClassifier.open(path) as clf:
        clf.predict(X)
    again.save(path)  # nothing has changed
