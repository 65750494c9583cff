"""kernel="pseudo": tangents of a few directions in the shared block, against dense algebra."""

import numpy as np
import pytest
import reference
import timm
import torch
from test_classifier import gap

from fastntk_sk import FastNTKClassifier
from fastntk_sk.baselines import fast_ntk_dual, retrain
from fastntk_sk.exceptions import StateMismatchError
from fastntk_sk.sums import memory
from fastntk_sk.sums.solvers import solve_schur
from fastntk_sk.sums.statistics import Statistics
from fastntk_sk.tangents import jacobians


def make(**changes):
    defaults = {"trainable": "norm", "kernel": "pseudo", "n_components": 20, "batch_size": 16}
    return FastNTKClassifier(**(defaults | {"random_state": 0} | changes))


def tangent_rows(model, x):
    """[h, r^{-1/2} (Q^T J_h^T u_1; ...), 1] by loops and a dense Q, in energy units."""
    names, net = model.tangent.subset.names, model.backbone.net
    J = reference.jacobian(net, names, x, model.directions)
    Q = model.projection.project(torch.eye(model.projection.p, dtype=torch.float64))
    r = len(model.directions)
    phi = torch.cat([J[:, j] @ Q for j in range(r)], 1) / r**0.5
    h = net(x).detach()
    return torch.cat([h / model.scale_h, phi / model.scale_J, torch.ones(len(x), 1) / model.scale_h], 1)


def test_the_estimator_solves_the_dense_problem(blobs):
    X, y = blobs
    w = np.linspace(0.5, 2, len(y))
    clf = make(alpha=0.3, tangent_scale=2.5, target_scale=3.0).fit(X, y, sample_weight=w)
    model = clf._state.model
    x = torch.from_numpy(X.astype(np.float32)).double()
    rows = tangent_rows(model, x)
    rows[:, model.d : -1] *= 2.5**0.5
    no_tangents = np.zeros((len(y), 3, 0))
    W, _ = reference.ridge(rows.numpy(), no_tangents, y, w, 0.3, 1.0, 3.0)
    np.testing.assert_allclose(clf.decision_function(X), rows.numpy() @ W.T, rtol=1e-7, atol=1e-9)
    assert clf.readout_.shape == (3, model.d + 3 * 20 + 1)
    assert clf.displacement_.shape == (0,)


@pytest.mark.parametrize("tangent_scale", [0.0, 2.5])
def test_shared_tangents_are_scaled_by_the_solver(tangent_scale):
    draws = np.random.default_rng(0)
    h = np.hstack([draws.normal(size=(30, 9)), np.full((30, 1), 0.5)])
    labels, w = draws.integers(3, size=30), draws.uniform(0.5, 2, 30)
    statistics = Statistics.zeros(9, 0, 3, constant=0.5, n_tangents=5)
    parts = [torch.from_numpy(part) for part in (h, np.zeros((30, 3, 0)), labels, w)]
    statistics.add(*parts)
    scales = {"alpha": 0.4, "target_scale": 2.0}
    found = solve_schur(statistics, tangent_scale=tangent_scale, **scales)
    scaled = h.copy()
    scaled[:, 4:9] *= tangent_scale**0.5
    W, _ = reference.ridge(scaled, np.zeros((30, 3, 0)), labels, w, 0.4, 1.0, 2.0)
    W[:, 4:9] *= tangent_scale**0.5
    np.testing.assert_allclose(found.W, W, rtol=1e-9, atol=1e-12)
    assert found.residual < 1e-12


def test_a_linear_probe_has_no_directions(blobs):
    X, y = blobs
    probe = FastNTKClassifier(trainable="head", random_state=0).fit(X, y)
    same = make(trainable="head", alpha="auto").fit(X, y)
    assert same.readout_.shape == probe.readout_.shape
    np.testing.assert_allclose(same.decision_function(X), probe.decision_function(X), rtol=1e-9)


def test_unlearn_partial_fit_and_merge_equal_a_refit(blobs):
    X, y = blobs
    clf = make().fit(X, y).unlearn(X[:7]).unlearn(X[7:20])
    assert gap(clf, make().fit(X[20:], y[20:])) < 1e-10
    clf.partial_fit(X[:20], y[:20])
    assert gap(clf, make().fit(X, y)) < 1e-10
    with pytest.warns(UserWarning, match="can be inverted"):
        both = make().fit(X[:30], y[:30]).merge(make().fit(X[30:], y[30:]))
    assert gap(both, make().fit(X, y)) < 1e-10
    with pytest.raises(StateMismatchError, match="kernel"):
        make(n_directions=2).fit(X, y).merge(make().fit(X, y))
    assert gap(retrain(clf, X[5:], y[5:], X[:5], y[:5]), make().fit(X[5:], y[5:])) == 0


def test_images(digits):
    X, y = digits[0][:40], digits[1][:40]
    settings = {"pretrained": False, "image_size": 32, "batch_size": 8, "n_components": 60}
    clf = make(backbone="test_resnet", **settings).fit(X, y).unlearn(X[:8])
    refit = make(backbone="test_resnet", **settings).partial_fit(X[8:], y[8:], classes=clf.classes_)
    assert gap(clf, refit) < 1e-6
    assert clf.receipts_[0]["exactness"]["exact"]
    np.testing.assert_array_equal(clf.decision_function(X)[:3], clf.decision_function(X[:3]))


def test_the_number_of_classes_costs_no_pass(blobs, monkeypatch):
    X, _ = blobs
    pulled, counts = jacobians._pulled, []

    def counted(*args):
        counts[-1] += 1
        return pulled(*args)

    monkeypatch.setattr(jacobians, "_pulled", counted)
    for n_classes in (2, 20):
        clf = make()
        counts.append(0)
        clf.fit(X, np.arange(60) % n_classes)
    assert counts[0] == counts[1]


def test_a_subspace_that_is_drawn_otherwise_is_noticed(blobs, tmp_path, monkeypatch):
    X, y = blobs
    for kernel, depends in (("pseudo", True), ("full", False)):
        clf = make(kernel=kernel).fit(X, y)
        clf.save(tmp_path / f"{kernel} state")
        clf.save_pretrained(tmp_path / kernel)
        with monkeypatch.context() as patch:
            patch.setattr("fastntk_sk.tangents.projection.Projection.digest", lambda self: "0" * 32)
            with pytest.raises(StateMismatchError, match="another random subspace"):
                FastNTKClassifier.load(tmp_path / f"{kernel} state")
            if depends:
                with pytest.raises(StateMismatchError, match="another random subspace"):
                    FastNTKClassifier.from_pretrained(tmp_path / kernel)
            else:  # which publishes the displacement itself
                FastNTKClassifier.from_pretrained(tmp_path / kernel)


def test_what_has_no_pseudo_kernel(blobs):
    X, y = blobs
    clf = make().fit(X, y)
    with pytest.raises(ValueError, match='kernel="full"'):
        fast_ntk_dual(clf, X[5:], y[5:], X[:5], y[:5])
    with pytest.raises(ValueError, match="got tangents of"):
        clf.to_module()


def test_memory_is_estimated_by_its_own_block(blobs, monkeypatch):
    X, y = blobs
    enough = memory.memory_needed(256 + 3 * 128, 0, 3, 16 * 1024 * 8, 16)
    monkeypatch.setattr(memory, "available_memory", lambda: enough)
    with pytest.raises(memory.InsufficientMemoryError, match="n_components=128 would fit") as caught:
        make(n_components=1000).fit(X, y)
    assert "pseudo" not in str(caught.value)
    make(n_components=128).fit(X, y)


def half(**changes):
    def factory():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)

    settings = {"n_prompts": 3, "image_size": 32, "batch_size": 8, "n_components": 100}
    settings |= {"precision": "bfloat16", "backbone_has_seen": False, "random_state": 0}
    return FastNTKClassifier(factory, **(settings | changes))


@pytest.mark.parametrize(
    ("trainable", "kernel"),
    [("prompt", "full"), ("norm", "pseudo"), ("bias", "full"), ("lora", "full"), ("ladder", "full")],
)
def test_bfloat16_is_coarser_and_its_deletion_as_exact(digits, trainable, kernel, tmp_path):
    X, y = digits[0][:24], digits[1][:24] % 2
    settings = {"trainable": trainable, "kernel": kernel}
    clf = half(**settings).fit(X, y).unlearn(X[:5])
    assert gap(clf, half(**settings).fit(X[5:], y[5:])) < 1e-6
    assert clf.receipts_[0]["exactness"]["exact"]
    assert clf.receipts_[0]["precision"] == "bfloat16"
    full = half(**settings, precision="float32").fit(X[5:], y[5:]).decision_function(X)
    assert 1e-5 < np.abs(clf.decision_function(X) - full).max() / np.abs(full).max() < 0.1
    clf.save(tmp_path / "model")
    again = FastNTKClassifier.load(tmp_path / "model", backbone=clf.backbone)
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    assert again.unlearn(X[5:7]).receipts_[-1]["precision"] == "bfloat16"


def test_where_bfloat16_is_too_coarse_it_is_an_error(digits):
    settings = {"pretrained": False, "image_size": 32, "batch_size": 8, "n_components": 60}
    settings |= {"trainable": "norm", "precision": "bfloat16", "random_state": 0}
    clf = FastNTKClassifier("tf_efficientnet_lite0", **settings)
    with pytest.raises(ValueError, match=r'Expected precision="float32" .* off by \d+%'):
        clf.fit(digits[0][:20], digits[1][:20])


def rounded(scale):
    """Return a network whose features lose digits in bfloat16: differences of large numbers."""

    class Differences(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow = torch.nn.Conv2d(3, 16, 3)

        def forward(self, x):
            h = self.narrow(x + scale).mean((2, 3))
            return h - self.narrow(torch.full_like(x, scale)).mean((2, 3))

    return Differences


def test_the_head_learns_in_bfloat16_where_predictions_stay(digits):
    settings = {"trainable": "head", "precision": "bfloat16", "image_size": 16, "random_state": 0}
    clf = FastNTKClassifier(rounded(0.0), **settings).fit(digits[0][:20], digits[1][:20])
    full = FastNTKClassifier(rounded(0.0), **settings | {"precision": "float32"})
    full.fit(digits[0][:20], digits[1][:20])
    assert 0 < gap(clf, full) < 0.2
    with pytest.raises(ValueError, match=r"its predictions are off by \d+%"):
        FastNTKClassifier(rounded(100.0), **settings).fit(digits[0][:20], digits[1][:20])
