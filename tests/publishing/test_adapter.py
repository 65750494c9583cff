"""The public adapter: it predicts bitwise the same, and knows nothing of rows."""

import json
import re
import stat

import numpy as np
import pytest
import timm
import torch
from hostile import Parts
from huggingface_hub import ModelCard
from sklearn.base import clone
from timm.models import save_for_hf

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import (
    EmptyClassWarning,
    FastNTKError,
    NoPrivateStateError,
    PublicationError,
    StateFormatError,
    StateMismatchError,
    UnsavedParameterWarning,
)
from fastntk_sk.inspection import calibrate
from fastntk_sk.publishing.card import model_card
from fastntk_sk.publishing.html import state_table

PUBLIC = {"README.md", "adapter.safetensors", "config.json"}


def make(**changes):
    defaults = {"trainable": "norm", "alpha": 0.25, "random_state": 0, "n_components": 32}
    return FastNTKClassifier(**(defaults | changes))


def small_vit(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model("test_vit", img_size=32)


@pytest.fixture(scope="module")
def pictures(digits):
    return digits[0][:24], digits[1][:24] % 3


@pytest.mark.parametrize(("anchor", "network"), [("pretrained", "auto"), ("finetuned", "network")])
def test_round_trip(blobs, tmp_path, anchor, network):
    X, y = blobs
    names = np.array(["a", "b", "c"])[y]
    clf = make(anchor=anchor, predict_with=network, max_epochs=2).fit(X, names).unlearn(X[:4])
    clf.save_pretrained(tmp_path / "one")
    assert {file.name for file in (tmp_path / "one").iterdir()} == PUBLIC
    pulled = FastNTKClassifier.from_pretrained(tmp_path / "one")
    np.testing.assert_array_equal(pulled.decision_function(X), clf.decision_function(X))
    np.testing.assert_array_equal(pulled.predict_proba(X), clf.predict_proba(X))
    np.testing.assert_array_equal(pulled.displacement_, clf.displacement_)
    assert pulled.classes_.tolist() == ["a", "b", "c"]
    assert pulled.get_params() == clf.get_params()
    assert (pulled.n_samples_learned_, pulled.n_samples_forgotten_) == (56, 4)
    assert pulled.receipts_ == []
    assert "public adapter only" in pulled._repr_html_()
    pulled.save_pretrained(tmp_path / "two")
    for name in PUBLIC:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert first == second
    assert clone(pulled).fit(X, names).n_samples_learned_ == 60


@pytest.mark.parametrize(
    ("trainable", "anchor"), [("prompt", "finetuned"), ("prompt-deep", "pretrained")]
)
def test_networks_of_images(pictures, tmp_path, trainable, anchor):
    X, y = pictures
    clf = make(backbone=small_vit(), trainable=trainable, anchor=anchor, max_epochs=1, image_size=32)
    clf.fit(X, y).unlearn(X[:2]).save_pretrained(tmp_path)
    with pytest.raises(StateMismatchError, match="not stored"):
        FastNTKClassifier.from_pretrained(tmp_path)
    pulled = FastNTKClassifier.from_pretrained(tmp_path, backbone=small_vit)
    np.testing.assert_array_equal(pulled.decision_function(X), clf.decision_function(X))
    if anchor == "finetuned":
        x = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(pulled.to_module()(x), clf.to_module()(x), rtol=0, atol=0)
    with pytest.raises(StateMismatchError, match=r"Expected the weights [0-9a-f]{32}"):
        FastNTKClassifier.from_pretrained(tmp_path, backbone=lambda: small_vit(1))


def test_it_cannot_learn_or_forget(blobs, tmp_path):
    for error in (NoPrivateStateError, PublicationError, StateFormatError):
        assert issubclass(error, FastNTKError)
        assert issubclass(error, ValueError)
    X, y = blobs
    clf = make().fit(X, y)
    clf.save_pretrained(tmp_path / "adapter")
    pulled = FastNTKClassifier.from_pretrained(tmp_path / "adapter")
    for call in (
        lambda: pulled.unlearn(X[:2]),
        lambda: pulled.partial_fit(X, y),
        lambda: pulled.rebuild(X, y),
        lambda: pulled.merge(clf),
        lambda: clf.merge(pulled),
        lambda: pulled.save(tmp_path / "state"),
    ):
        with pytest.raises(NoPrivateStateError, match="FastNTKClassifier.load"):
            call()
    report = pulled.can_unlearn(X[:2])
    assert (report["possible"], report["n_rows"]) == (False, 0)
    assert "private state" in report["reason"]
    assert not (tmp_path / "state").exists()
    with pytest.raises(NoPrivateStateError, match="from_pretrained"):
        FastNTKClassifier.load(tmp_path / "adapter")
    clf.save(tmp_path / "state")
    with pytest.raises(StateFormatError, match="load"):
        FastNTKClassifier.from_pretrained(tmp_path / "state")


def test_nothing_of_a_row_is_in_it(blobs, tmp_path):
    X, y = blobs
    clf = make(anchor="finetuned", max_epochs=1).fit(X, y, sample_ids=range(60)).unlearn(X[:3])
    clf.save_pretrained(tmp_path / "adapter")
    clf.save(tmp_path / "state")
    published = b"".join(file.read_bytes() for file in (tmp_path / "adapter").iterdir())
    private = Parts.of(tmp_path / "state")
    secrets = [key for _, key in private.segments]
    secrets += [value for _, digest, owner, *_ in private.ledger for value in (digest, owner)]
    secrets += [row.tobytes() for row in X.astype(np.float32)]
    secrets += [content for name, content in private.statistics.items() if name in ("A", "B", "G")]
    anchor = ("anchor.moved", "anchor.delta", "anchor.readout")
    secrets += [private.own[name].numpy().tobytes() for name in anchor]
    public = Parts.of(tmp_path / "adapter").tensors
    sgd = {n.removeprefix("anchor."): t for n, t in private.own.items() if "network." in n}
    moved = [t.numpy().tobytes() for n, t in sgd.items() if not torch.equal(t, public[n])]
    assert moved
    secrets += moved
    for secret in secrets:
        assert secret not in published
        assert secret.hex().encode() not in published
    assert stat.S_IMODE((tmp_path / "adapter" / "adapter.safetensors").stat().st_mode) == 0o644


def test_the_configuration(blobs, tmp_path):
    X, y = blobs
    clf = make(alpha=0.5).fit(X, y).unlearn(X[:2]).unlearn(X[2:3])
    clf.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    elsewhere = {"backbone": "mlp", "num_workers": 0, "finetune_params": None, "keep": None}
    assert config["params"] | elsewhere == clf.get_params()
    assert config["exactness"] == {"exact": True, "reasons": []}
    last = clf.receipts_[-1]
    assert config["receipts"] == {last["chain"]: last["checksum"]}
    assert config["tensors_checksum"] == clf._adapter.checksum
    # the file alone is a whole adapter
    (tmp_path / "config.json").unlink()
    pulled = FastNTKClassifier.from_pretrained(tmp_path)
    np.testing.assert_array_equal(pulled.predict(X), clf.predict(X))
    parts = Parts.of(tmp_path)
    assert parts.config.items() <= config.items()
    parts.config |= {"format": 2, "version": "9.0"}
    with pytest.raises(StateFormatError, match="Upgrade"):
        FastNTKClassifier.from_pretrained(parts.write(tmp_path / "later"))


def test_an_anchor_that_has_seen_rows_is_not_published(blobs, tmp_path):
    with pytest.raises(ValueError, match="tangent_scale > 0"):  # the subset would be what SGD left
        make(anchor="finetuned", tangent_scale=0).fit(*blobs)
    clf = make(anchor="finetuned", predict_with="linear", max_epochs=1).fit(*blobs)
    with pytest.raises(PublicationError, match="they are private"):
        clf.save_pretrained(tmp_path)
    with pytest.raises(PublicationError, match="they are private"):
        clf.push_to_hub("me/adapter")
    assert not list(tmp_path.iterdir())
    clf.save(tmp_path / "model")
    again = FastNTKClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.decision_function(blobs[0]), clf.decision_function(blobs[0]))


def test_the_card_and_the_page_say_what_was_learned(pictures, tmp_path):
    X, y = pictures
    params = {"trainable": ["ladder", "norm"], "n_components": 50, "image_size": 32, "batch_size": 8}
    params |= {"augment": "flip"}
    clf = make(backbone="test_resnet", pretrained=False, **params).fit(X, y).unlearn(X[:3])
    clf.save_pretrained(tmp_path, dataset="Digits | test", metrics={"accuracy": 0.5}, license="mit")
    card = (tmp_path / "README.md").read_text()
    for expected in (
        "library_name: fastntk-sk",
        "license: mit",
        "3 rows",
        r"| learned from | Digits \| test |",
        "name: Digits | test",
        "value: 0.5",
    ):
        assert expected in card
    assert "{{" not in card
    for text in (card, state_table(clf)):
        assert "50 features" in text
        assert "2,080 parameters" in text
        assert "mirror image" in text
    assert "datasets:" not in card  # it is no identifier of the Hub
    clf.save_pretrained(tmp_path / "plain")
    assert "license:" not in (tmp_path / "plain" / "README.md").read_text()  # of random weights


def test_the_fields_that_the_hub_reads(pictures, monkeypatch):
    X, y = pictures
    clf = make(backbone="tf_efficientnet_lite0", trainable="ladder", image_size=32).fit(X, y)
    card = ModelCard(model_card(clf, dataset="zalando-datasets/fashion_mnist"))
    fields = {
        "base_model": "timm/tf_efficientnet_lite0.in1k",
        "base_model_relation": "adapter",
        "datasets": ["zalando-datasets/fashion_mnist"],
        "license": "apache-2.0",
    }
    assert fields.items() <= card.data.to_dict().items()
    assert "| licence | apache-2.0: that of the backbone's weights" in card.text
    # a model is listed under every paper on arXiv that its card links to
    assert set(re.findall(r"\b\d{4}\.\d{4,5}\b", str(card))) == {"2312.14923"}
    monkeypatch.setitem(clf._adapter.model.backbone.net.pretrained_cfg, "license", "dinov3-license")
    card = ModelCard(model_card(clf))
    assert (card.data.license, card.data.license_name) == ("other", "dinov3-license")


def test_the_card_says_what_holds_of_this_model(blobs):
    X, y = blobs
    clf = make(trainable="ladder").fit(X, y)
    assert "on the frozen backbone" in model_card(clf)
    assert "| deletions | none yet |" in model_card(clf)
    for trainable, what in (("head", "model itself"), ("norm", "linearised model")):
        other = make(trainable=trainable).fit(X, y).unlearn(X[:1])
        assert f"| deletions | exact for the {what} |" in model_card(other)
    clf.rectify(X[:1], (y[:1] + 1) % 3)
    assert "| deletions | exact for the model itself |" in model_card(clf)
    with pytest.warns(EmptyClassWarning):
        clf.unlearn(X[y == (y[0] + 2) % 3])
    assert "3 classes (1 of them without a learned row" in model_card(clf)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            model_card(clf, metrics={"accuracy": value})
    moved = make(predict_with="network").fit(X, y)
    assert "on the backbone" in model_card(moved)


def test_the_card_of_a_calibrated_model_says_so(blobs):
    clf = make(trainable="ladder").fit(*blobs)
    assert "`predict_proba` is not calibrated." in model_card(clf)
    card = model_card(calibrate(clf, *blobs))
    assert "was fitted on the leave-one-out scores" in card
    assert "not calibrated" not in card


def test_an_alpha_that_the_sums_chose_is_not_published(blobs, tmp_path):
    clf = make(alpha="auto", trainable="ladder").fit(*blobs)
    clf.save_pretrained(tmp_path)
    assert f"{clf.alpha_:.4g}, chosen by the sums" in state_table(clf)
    pulled = FastNTKClassifier.from_pretrained(tmp_path)
    assert not hasattr(pulled, "alpha_")
    assert ">alpha<" not in state_table(pulled)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_loads_the_export_by_itself(pictures, tmp_path, name):
    X, y = pictures
    labels = np.array(["ant", "bee", "cat"])[y]
    clf = make(backbone=name, pretrained=False, anchor="finetuned", max_epochs=1, image_size=32)
    clf.fit(X, labels).unlearn(X[labels == "bee"][:1]).export_timm(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert net.pretrained_cfg["label_names"] == clf.classes_.tolist()
    data = timm.data.resolve_model_data_config(net)
    assert (data["input_size"], data["crop_pct"], data["crop_mode"]) == ((3, 32, 32), 1.0, "squash")
    spec = clf._adapter.model.backbone.spec
    batch = spec.normalise([spec.pixels(x) for x in X[:5]], torch.float32)
    with torch.no_grad():
        scores = net(batch).double().numpy()
    np.testing.assert_allclose(scores, clf.decision_function(X[:5]), rtol=1e-4, atol=1e-5)
    (tmp_path / "adapter.safetensors").touch()
    with pytest.raises(ValueError, match="which holds an adapter"):
        clf.export_timm(tmp_path)


def test_what_timm_cannot_build(pictures, blobs, tmp_path):
    clf = make(backbone=small_vit(), trainable="prompt", anchor="finetuned", max_epochs=1, image_size=32)
    with pytest.raises(ValueError, match="with prompt tokens"):
        clf.fit(*pictures).export_timm(tmp_path)
    with pytest.raises(ValueError, match="got Sequential"):
        make(anchor="finetuned", max_epochs=1).fit(*blobs).export_timm(tmp_path)
    tangents = make().fit(*blobs)
    for export in (tangents.export_timm, tangents.export_onnx):
        with pytest.raises(ValueError, match="got tangents of"):
            export(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_nothing_of_this_machine_is_in_it(pictures, tmp_path):
    X, y = pictures
    base = tmp_path / "client-acme"
    save_for_hf(timm.create_model("test_resnet"), str(base), safe_serialization=True)
    clf = make(backbone=f"local-dir:{base}", image_size=32, batch_size=8)
    clf.set_params(finetune_params={"callbacks__ckpt__dirname": "/home/alice/runs"}).fit(X, y)
    clf.save_pretrained(tmp_path / "adapter")
    published = b"".join(file.read_bytes() for file in (tmp_path / "adapter").iterdir())
    for secret in (b"client-acme", b"alice", b"local-dir"):
        assert secret not in published
    assert b"`test_resnet`" in published
    with pytest.raises(StateMismatchError, match=r"test_resnet\), which is not stored"):
        FastNTKClassifier.from_pretrained(tmp_path / "adapter")
    pulled = FastNTKClassifier.from_pretrained(tmp_path / "adapter", backbone=clf.backbone)
    np.testing.assert_array_equal(pulled.decision_function(X), clf.decision_function(X))
    # the private state stays on this machine, and knows the folder
    clf.save(tmp_path / "state")
    again = FastNTKClassifier.load(tmp_path / "state")
    assert again.get_params() == clf.get_params()
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))


def test_a_folder_is_a_folder(blobs, tmp_path):
    clf = make().fit(*blobs)
    clf.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="Expected no revision with a folder"):
        FastNTKClassifier.from_pretrained(tmp_path / "adapter", revision="main")
    with pytest.raises(StateFormatError, match="it is missing"):
        FastNTKClassifier.from_pretrained(tmp_path / "adapters")
    with pytest.raises(NoPrivateStateError, match="no receipts"):
        FastNTKClassifier.from_pretrained(tmp_path / "adapter").export_receipts(tmp_path / "r.jsonl")
    other = make().fit(*blobs)
    other.classes_ = np.array([{"a": 1}, {"b": 1}], dtype=object)
    with pytest.raises(StateFormatError):
        other.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_parameter_that_json_cannot_hold_is_left_out_with_a_warning(blobs, tmp_path):
    clf = make(device=torch.device("cpu")).fit(*blobs).set_params(trainable={1, 2})
    with pytest.warns(UnsavedParameterWarning, match="trainable"):
        clf.save(tmp_path / "state")
    loaded = FastNTKClassifier.load(tmp_path / "state")
    assert loaded.device == "cpu"
    np.testing.assert_array_equal(loaded.predict(blobs[0]), clf.predict(blobs[0]))
