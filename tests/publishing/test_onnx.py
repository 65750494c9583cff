"""ONNX files: what onnxruntime computes from them is what the estimator predicts."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import EmptyClassWarning

# of torch's exporter and of its own use of what it deprecates
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


def scores_of(path, clf, X):
    """Return what a session gives for rows that are prepared as the metadata say."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    spec = clf._adapter.model.backbone.spec
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == [
        *map(str, clf.classes_)
    ]
    rows = X.astype(np.float32) if X.ndim == 2 else [spec.pixels(picture) for picture in X]
    batch = spec.normalise([*rows], torch.float32)
    return session.run(["scores"], {"batch": batch.numpy()})[0], session.get_modelmeta()


@pytest.mark.parametrize(
    ("backbone", "size", "augment"),
    [
        ("timm:test_efficientnet", 32, "flip"),
        pytest.param("tf_efficientnet_lite0", 64, None, marks=pytest.mark.slow),
        pytest.param("timm:test_vit", 32, None, marks=pytest.mark.slow),
        pytest.param("timm:test_convnext", 32, None, marks=pytest.mark.slow),
    ],
)
def test_a_ladder(digits, tmp_path, backbone, size, augment):
    X, y = digits
    clf = FastNTKClassifier(
        backbone,
        image_size=size,
        n_components=256,
        pretrained=False,
        augment=augment,
        random_state=0,
    )
    clf.fit(X[:60], y[:60]).export_onnx(tmp_path / "new" / "model.onnx")
    found, meta = scores_of(tmp_path / "new" / "model.onnx", clf, X[60:110])
    np.testing.assert_allclose(found, clf.decision_function(X[60:110]), atol=1e-4)
    alone, _ = scores_of(tmp_path / "new" / "model.onnx", clf, X[60:61])
    np.testing.assert_allclose(alone, found[:1], atol=1e-4)
    assert json.loads(meta.custom_metadata_map["preprocessing"])["size"] == [size, size]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_a_finetuned_anchor(digits, tmp_path):
    X, y = digits
    clf = FastNTKClassifier(
        "timm:test_vit",
        anchor="finetuned",
        max_epochs=1,
        image_size=32,
        pretrained=False,
        random_state=0,
    ).fit(X[:60], y[:60])
    clf.export_onnx(tmp_path / "model.onnx")
    found, _ = scores_of(tmp_path / "model.onnx", clf, X[60:110])
    np.testing.assert_allclose(found, clf.decision_function(X[60:110]), atol=1e-4)


def test_vectors_and_a_class_without_rows(blobs, tmp_path, capfd):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0).fit(X, y)
    with pytest.warns(EmptyClassWarning):
        clf.unlearn(X[y == 2])
    before = torch.get_rng_state()
    clf.export_onnx(tmp_path / "model.onnx")
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")
    found, _ = scores_of(tmp_path / "model.onnx", clf, X)
    assert (found[:, 2] == -np.inf).all()
    np.testing.assert_allclose(found[:, :2], clf.decision_function(X)[:, :2], atol=1e-4)
