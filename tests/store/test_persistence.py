import json
import stat

import hostile
import numpy as np
import pytest
import torch
from cryptography.fernet import Fernet
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from fastntk_sk import FastNTKClassifier, unlearn
from fastntk_sk.exceptions import (
    DecryptionError,
    InexactDeletionWarning,
    PublicationError,
    StateFormatError,
    StateMismatchError,
)
from fastntk_sk.publishing import files


def make(**changes):
    return FastNTKClassifier(**({"random_state": 0, "n_components": 32} | changes))


@pytest.mark.parametrize("labels", [["a", "b", "c"], [5, -1, 7], np.array(["x", 3, None], object)])
def test_round_trip(blobs, tmp_path, labels):
    X, y = blobs
    names = np.asarray(labels)[y] if None not in labels else np.array(["p", "q", "r"], object)[y]
    clf = make(image_size=None).fit(X, names, sample_ids=range(60)).unlearn(X[:3])
    clf.save(tmp_path / "model")
    again = FastNTKClassifier.load(tmp_path / "model")
    assert again.get_params() == clf.get_params()
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
            return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)

    clf = make(backbone=net(), trainable="prompt", image_size=32, batch_size=4).fit(X, y)
    clf.save(tmp_path)
    with pytest.raises(StateMismatchError, match="backbone=..."):
        FastNTKClassifier.load(tmp_path)
    again = FastNTKClassifier.load(tmp_path, backbone=net)
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    again.unlearn(X[:4])
    with pytest.raises(StateMismatchError, match="Expected the weights"):
        FastNTKClassifier.load(
            tmp_path,
            backbone=lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1),
        )


def test_set_params_after_fit_does_not_reach_the_saved_state(blobs, tmp_path):
    X, y = blobs
    clf = make().fit(X, y)
    expected = clf.decision_function(X)
    clf.set_params(backbone="resnet18", trainable="head", alpha=9.0)
    clf.save(tmp_path)
    again = FastNTKClassifier.load(tmp_path)
    np.testing.assert_array_equal(again.decision_function(X), expected)
    assert again.backbone == "resnet18"


def test_pandas_names_survive(blobs, tmp_path):
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(blobs[0], columns=list("abcd"))
    clf = make().fit(X, blobs[1])
    clf.save(tmp_path)
    again = FastNTKClassifier.load(tmp_path)
    assert again.n_features_in_ == 4
    again.unlearn(X.iloc[:2])


def test_files_are_private_and_old_ones_are_collected(blobs, tmp_path):
    X, y = blobs
    clf = make().fit(X, y)
    clf.save(tmp_path)
    first = {file.name for file in tmp_path.iterdir()}
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in tmp_path.iterdir())
    clf.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == first
    clf.unlearn(X[:1]).save(tmp_path)
    after = {file.name for file in tmp_path.iterdir()}
    assert len(after) == 5
    assert after & first == {"manifest.json"}


def test_saving_again_mends_files_and_their_modes(blobs, tmp_path):
    clf = make().fit(*blobs)
    clf.save(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
        file.chmod(0o644)
    clf.save(tmp_path)
    assert FastNTKClassifier.load(tmp_path).n_samples_learned_ == 60
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in tmp_path.iterdir())


def test_damage_is_named(blobs, tmp_path):
    make().fit(*blobs).save(tmp_path / "m")
    with pytest.raises(StateFormatError, match="No manifest.json"):
        FastNTKClassifier.load(tmp_path)
    manifest = tmp_path / "m" / "manifest.json"
    good = manifest.read_text()
    manifest.write_text(good.replace("ledger-", "ledger-0", 1))
    with pytest.raises(StateFormatError, match="changed after it was saved"):
        FastNTKClassifier.load(tmp_path / "m")
    manifest.write_text(good[:50])
    with pytest.raises(StateFormatError, match="damaged"):
        FastNTKClassifier.load(tmp_path / "m")
    manifest.write_text(json.dumps({"format": 99, "version": "9"}))
    with pytest.raises(StateFormatError, match="Upgrade"):
        FastNTKClassifier.load(tmp_path / "m")
    manifest.write_text(good)
    tensors = next((tmp_path / "m").glob("statistics-*.safetensors"))
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(StateFormatError, match="is damaged"):
        FastNTKClassifier.load(tmp_path / "m")
    tensors.unlink()
    with pytest.raises(StateFormatError, match="it is missing"):
        FastNTKClassifier.load(tmp_path / "m")


@pytest.mark.parametrize(
    "name",
    ["thesis.tex", "adapter-model.safetensors", "receipts-2024.json", "movie.partial", "README.md"],
)
def test_a_folder_with_other_things_is_left_alone(blobs, tmp_path, name):
    clf = make().fit(*blobs)
    (tmp_path / name).write_text("x")
    with pytest.raises(StateFormatError, match="something else"):
        clf.save(tmp_path)
    if name == "README.md":
        with pytest.raises(PublicationError, match=r"holds a README\.md of something else"):
            clf.save_pretrained(tmp_path)
    else:
        clf.save_pretrained(tmp_path)
    assert (tmp_path / name).read_text() == "x"


def test_parameters_that_json_cannot_hold(blobs, tmp_path):
    clf = make(random_state=np.random.RandomState(3)).fit(*blobs)
    clf.save(tmp_path)
    assert isinstance(FastNTKClassifier.load(tmp_path).random_state, int)


@pytest.mark.parametrize("as_text", [False, True])
def test_an_encrypted_state(blobs, tmp_path, as_text):
    X, y = blobs
    key = Fernet.generate_key().decode() if as_text else Fernet.generate_key()
    clf = make().fit(X, y, sample_ids=range(60)).unlearn(X[:2])
    clf.save(tmp_path, key=key)
    encrypted = {file.name for file in tmp_path.glob("*.fernet")}
    kinds = {name.partition("-")[0] for name in encrypted}
    assert kinds == {"adapter", "statistics", "ledger", "receipts"}
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    (segment,) = clf._state.ledger.segments
    assert segment.key not in content
    assert clf.receipts_[0]["chain"].encode() not in content
    again = FastNTKClassifier.load(tmp_path, key=key)
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    again.unlearn(X[2:4], sample_ids=[2, 3]).save(tmp_path)
    assert not list(tmp_path.glob("*.fernet"))
    assert FastNTKClassifier.load(tmp_path).n_samples_learned_ == 56


def test_a_public_adapter_keeps_away_from_private_files(blobs, tmp_path):
    """As an interrupted first save leaves them, without a manifest."""
    clf = make().fit(*blobs)
    clf.save(tmp_path)
    (tmp_path / "manifest.json").unlink()
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(PublicationError, match="files of a private state"):
        clf.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == before
    clf.save_pretrained(tmp_path / "public")
    (tmp_path / "public" / next(name for name in before if name.startswith("ledger"))).write_bytes(b"")
    with pytest.raises(StateFormatError, match="with its private state"):
        FastNTKClassifier.from_pretrained(tmp_path / "public")


def test_what_could_not_be_read_again_is_not_written(blobs, tmp_path):
    X, y = blobs
    clf = make().fit(X, y)
    clf.save(tmp_path)
    pipeline = Pipeline([("x" * 5000, StandardScaler().fit(X)), ("classifier", clf)])
    with pytest.warns(InexactDeletionWarning):
        unlearn(pipeline, StandardScaler().fit(X).inverse_transform(X[:1]))
    with pytest.raises(StateFormatError, match="no valid 'seen_by'"):
        clf.save(tmp_path)
    assert FastNTKClassifier.load(tmp_path).n_samples_forgotten_ == 0


def test_keys_that_do_not_fit(blobs, tmp_path):
    clf = make().fit(*blobs)
    for key in ("short", b"x" * 44, 7):
        with pytest.raises(DecryptionError, match="Expected key to be 32"):
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


def test_a_reader_while_another_process_saves(blobs, tmp_path, monkeypatch):
    X, y = blobs
    clf, read = make().fit(X, y), files.read
    clf.save(tmp_path)

    def late(folder, name, *rest):
        if name.startswith("statistics"):
            monkeypatch.setattr(files, "read", read)
            clf.unlearn(X[:5]).save(tmp_path)
        return read(folder, name, *rest)

    monkeypatch.setattr(files, "read", late)
    assert FastNTKClassifier.load(tmp_path).n_samples_learned_ == 55


def test_many_receipts_can_be_read_again(blobs, tmp_path):
    clf = make().fit(*blobs).unlearn(blobs[0][:1])
    (receipt,) = clf._state.receipts
    for _ in range(20_000):
        previous = clf._state.receipts[-1]["digest"]
        fields = {k: v for k, v in receipt.items() if k not in ("digest", "versions")}
        clf._state.receipts.append(files.signed(fields | {"previous": previous, "notes": "x" * 1500}))
    clf.save(tmp_path)
    (file,) = tmp_path.glob("receipts-*.jsonl")
    assert file.stat().st_size > 2**25
    assert len(FastNTKClassifier.load(tmp_path).receipts_) == 20_001


@pytest.mark.parametrize("case", hostile.EACH)
def test_a_file_starts_no_processes(tmp_path, case):
    parts = hostile.saved_parts(tmp_path)[case][0]
    parts.config["params"]["num_workers"] = 10**6
    parts.write(tmp_path / "forged")
    loaded = hostile.load(tmp_path / "forged", hostile.BACKBONES[case[0]])
    assert loaded.num_workers == 0
