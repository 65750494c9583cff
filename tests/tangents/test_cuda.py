"""A CUDA device against the CPU, and against itself."""

import importlib.util

import numpy as np
import pytest
import timm
import torch
from cases import gap, randomise

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import NumericalDriftWarning

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]
LORA = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
KINDS = [
    pytest.param("cnn", {"trainable": "ladder"}, id="ladder"),
    pytest.param("vit", {"trainable": "ladder"}, id="ladder of a ViT"),
    pytest.param("cnn", {"trainable": "head"}, id="head"),
    pytest.param("cnn", {"trainable": "norm"}, id="norm, full"),
    pytest.param("cnn", {"trainable": "norm", "kernel": "pseudo"}, id="norm, pseudo"),
    pytest.param("vit", {"trainable": "norm"}, id="norm of a ViT"),
    pytest.param("vit", {"trainable": "prompt"}, id="prompt"),
    pytest.param("vit", {"trainable": "lora"}, id="lora", marks=LORA),
]
kinds = pytest.mark.parametrize(("net", "params"), KINDS)


def network(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "cnn":
            return randomise(timm.create_model("test_resnet", num_classes=0).eval())
        return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)


def pictures(n):
    draws = np.random.default_rng(0)
    return draws.integers(256, size=(n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 3


def learned(net, device=DEVICE, n=40, **params):
    X, y = pictures(n)
    common = {"image_size": 32, "n_components": 64, "batch_size": 16, "random_state": 0}
    clf = FastNTKClassifier(network(net), device=device, **common | params)
    return clf.fit(X, y, sample_ids=[*range(n)]), X, y


def tangents(clf, X):
    """Return features and Jacobians of rows, as one matrix on the CPU."""
    parts = clf._private.state.model.all_tangents(clf._rows(X))
    return torch.cat([torch.cat([h, J.flatten(1)], dim=1) for h, J in parts]).cpu()


@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-5), ("float64", 1e-10)])
@kinds
def test_features_and_jacobians_are_those_of_the_cpu(net, params, precision, limit):
    found, expected = (
        tangents(*learned(net, device, precision=precision, **params)[:2]).double()
        for device in (DEVICE, "cpu")
    )
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert errors.median() < limit


@kinds
def test_a_row_is_bitwise_the_same_in_every_batch(net, params):
    clf, X, _ = learned(net, **params)
    order = np.random.default_rng(1).permutation(len(X))
    expected = tangents(clf, X)
    assert torch.equal(tangents(clf, X), expected)
    assert torch.equal(tangents(clf, X[order]), expected[order])
    assert torch.equal(tangents(clf, X[7:8]), expected[7:8])


@kinds
def test_a_deletion_is_exact(net, params):
    clf, X, y = learned(net, alpha=0.1, backbone_has_seen=False, **params)
    clf.unlearn(X[:5])
    assert clf.receipts_[0]["drift"] == 0
    assert clf.receipts_[0]["exactness"] == {"exact": True, "reasons": []}
    refit = FastNTKClassifier(**clf.get_params()).fit(X[5:], y[5:])
    assert gap(clf, refit) < 1e-6
    with torch.cuda.stream(torch.cuda.Stream()):
        again = FastNTKClassifier(**clf.get_params()).fit(X[5:], y[5:])
        np.testing.assert_array_equal(again.decision_function(X), refit.decision_function(X))


def test_learned_here_and_forgotten_on_the_cpu(tmp_path):
    clf, X, y = learned("cnn", backbone_has_seen=False)
    clf.save(tmp_path / "state")
    on_cpu = FastNTKClassifier.load(tmp_path / "state", backbone=network("cnn"), device="cpu")
    with pytest.warns(NumericalDriftWarning, match="differs"):
        on_cpu.unlearn(X[:2])
    assert not on_cpu.receipts_[0]["exactness"]["exact"]
    on_cpu.rebuild(X[2:], y[2:]).unlearn(X[2:3])
    assert on_cpu.receipts_[1]["exactness"]["exact"]
    np.testing.assert_allclose(
        clf.unlearn(X[:3]).decision_function(X), on_cpu.decision_function(X), rtol=1e-3, atol=1e-3
    )


def test_with_kept_features_nothing_drifts(tmp_path):
    clf, _, _ = learned("cnn", keep="features", backbone_has_seen=False)
    clf.save(tmp_path / "state")
    on_cpu = FastNTKClassifier.load(tmp_path / "state", backbone=network("cnn"), device="cpu")
    on_cpu.unlearn(sample_ids=[0, 1]).rebuild()
    assert on_cpu.receipts_[0]["drift"] == 0
    assert on_cpu.receipts_[0]["exactness"]["exact"]
    assert gap(on_cpu, clf.unlearn(sample_ids=[0, 1])) < 1e-6
