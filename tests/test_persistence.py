import json
import stat

import numpy as np
import pytest
import torch

from fastntk_sk import FastNTKClassifier, persistence
from fastntk_sk.exceptions import StateFormatError, StateMismatchError


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
    with pytest.raises(StateMismatchError, match="weights of backbone"):
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
    assert len(after) == 4
    assert after & first == {"manifest.json"}


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_interrupted_save_leaves_the_old_state(blobs, tmp_path, monkeypatch, at):
    X, y = blobs
    clf = make().fit(X, y)
    clf.save(tmp_path)
    expected = clf.decision_function(X)
    clf.unlearn(X[:5])
    write, calls = persistence._replace, []

    def stop(folder, name, data):
        calls.append(name)
        if len(calls) == at:
            (folder / "half.partial").write_bytes(data[:10])
            raise KeyboardInterrupt
        write(folder, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(persistence, "_replace", stop)
        with pytest.raises(KeyboardInterrupt):
            clf.save(tmp_path)
    assert len(calls) == at
    again = FastNTKClassifier.load(tmp_path)
    np.testing.assert_array_equal(again.decision_function(X), expected)
    clf.save(tmp_path)
    assert FastNTKClassifier.load(tmp_path).n_samples_learned_ == 55
    assert len(list(tmp_path.iterdir())) == 4


def test_damage_is_named(blobs, tmp_path):
    make().fit(*blobs).save(tmp_path / "m")
    with pytest.raises(StateFormatError, match="No manifest.json"):
        FastNTKClassifier.load(tmp_path)
    manifest = tmp_path / "m" / "manifest.json"
    good = manifest.read_text()
    manifest.write_text(good.replace('"alpha": 0.25', '"alpha": 0.26'))
    with pytest.raises(StateFormatError, match="changed after it was saved"):
        FastNTKClassifier.load(tmp_path / "m")
    manifest.write_text(good[:50])
    with pytest.raises(StateFormatError, match="damaged"):
        FastNTKClassifier.load(tmp_path / "m")
    manifest.write_text(json.dumps({"format": 99, "version": "9"}))
    with pytest.raises(StateFormatError, match="Upgrade"):
        FastNTKClassifier.load(tmp_path / "m")
    manifest.write_text(good)
    tensors = next((tmp_path / "m").glob("private-*.safetensors"))
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(StateFormatError, match="is damaged"):
        FastNTKClassifier.load(tmp_path / "m")
    tensors.unlink()
    with pytest.raises(StateFormatError, match="is missing"):
        FastNTKClassifier.load(tmp_path / "m")


def test_a_folder_with_other_things_is_left_alone(blobs, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StateFormatError, match="something else"):
        make().fit(*blobs).save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_parameters_that_json_cannot_hold(blobs, tmp_path):
    clf = make(random_state=np.random.RandomState(3)).fit(*blobs)
    clf.save(tmp_path)
    assert isinstance(FastNTKClassifier.load(tmp_path).random_state, int)
