"""augment="flip": against averages of plain passes and dense algebra, and that one row is one row."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from cases import gap, parameters, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import nn

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV
from fastntk_sk.baselines import fast_ntk_dual, finetune, full_ntk, ssd
from fastntk_sk.evaluation import shadow_margins
from fastntk_sk.exceptions import StateMismatchError, UnknownSampleError

KINDS = {
    "ladder": {},
    "kept": {"keep": "features"},
    "head": {"trainable": "head", "alpha": 0.1},
    "norm": {"trainable": "norm", "n_components": 4},
    "network": {"trainable": "norm", "n_components": 4, "predict_with": "network"},
    "pseudo": {"trainable": "norm", "kernel": "pseudo", "n_components": 4},
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = (
            nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 1),
        )

    def forward(self, x):
        return x + self.last(nn.functional.silu(self.norm(self.conv(x))))


class Net(nn.Module):
    """A stem and two blocks, which see left and right differently."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 6, 3, stride=2), nn.Sequential(Block(), Block())

    def forward(self, x):
        return self.blocks(self.stem(x)).mean((2, 3))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(Net().eval())


def make(cls=FastNTKClassifier, **changes):
    given = {"image_size": 8, "n_components": 12, "batch_size": 8, "backbone_has_seen": False}
    given |= {"precision": "float64", "augment": "flip", "random_state": 0}
    return cls(network, **given | changes)


@pytest.fixture(scope="module")
def pictures():
    """60 pictures of 3 classes that are not their own mirror images."""
    draws = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = draws.integers(0, 120, (60, 8, 8, 3))
    X[np.arange(60), :, 2 * y] += 120
    return X.astype(np.uint8), y


def mirrored(X):
    return np.ascontiguousarray(X[:, :, ::-1])


def of_views(clf, X):
    """Return features and Jacobians of pictures, then of mirror images, by passes without augment."""
    model = clf._adapter.model
    plain = replace(model, settings=replace(model.settings, augment=None))
    for view in (X, mirrored(X)):
        parts = zip(*plain.all_tangents(clf._rows(view)), strict=True)
        yield tuple(torch.cat(part).double().numpy() for part in parts)


@pytest.mark.parametrize("kind", ["ladder", "norm"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_against_dense_algebra(pictures, kind, n_classes):
    X, y = pictures[0], pictures[1] % n_classes
    weights = np.linspace(0.5, 2, len(y))
    clf = make(**KINDS[kind] | {"alpha": 0.2}).fit(X[:24], y[:24], weights[:24])
    (h, J), (mirrored_h, mirrored_J) = of_views(clf, X[:24])
    h, J, w = (h + mirrored_h) / 2, (J + mirrored_J) / 2, weights[:24]
    if kind == "norm":
        W, z = reference.ridge(h, J, y[:24], w, 0.2, 1.0, 1.0)
    else:  # without a ridge on the intercept
        T = np.eye(n_classes)[y[:24]] - 1 / n_classes
        x, t = np.average(h[:, :-1], 0, w), np.average(T, 0, w)
        S = (h[:, :-1] - x).T @ (w[:, None] * (h[:, :-1] - x)) + 0.2 * np.eye(h.shape[1] - 1)
        W = np.linalg.solve(S, (h[:, :-1] - x).T @ (w[:, None] * (T - t))).T
        W, z = np.column_stack([W, (t - W @ x) / h[0, -1]]), np.zeros(0)
    found = clf.readout_ * clf._adapter.model.column_scales.numpy()
    np.testing.assert_allclose(found, W, rtol=1e-8, atol=1e-10)
    assert clf.n_samples_learned_ == 24
    scores = np.mean([h @ W.T + J @ z for h, J in of_views(clf, X)], axis=0)
    expected = scores[:, 1] - scores[:, 0] if n_classes == 2 else scores
    np.testing.assert_allclose(clf.decision_function(X), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_one_request_forgets_both_views(pictures, tmp_path, kind):
    X, y = pictures
    names, gone = [f"person {i % 12}" for i in range(60)], np.arange(60) % 12 == 4
    clf = make(**KINDS[kind]).fit(X, y, sample_ids=names)
    assert np.array_equal(clf.decision_function(X), clf.decision_function(mirrored(X)))
    report = clf.can_unlearn(X[gone])
    assert (report["possible"], report["n_rows"]) == (True, 5)
    with pytest.raises(UnknownSampleError):
        clf.unlearn(mirrored(X[gone]))
    clf.save(tmp_path / "state")
    loaded = FastNTKClassifier.load(tmp_path / "state", backbone=network)
    assert np.array_equal(loaded.decision_function(X), clf.decision_function(X))
    by_name = {"sample_ids": ["person 4"]} if kind == "kept" else {"X_forget": X[gone]}
    refit = make(**KINDS[kind]).fit(X[~gone], y[~gone])
    for model in (clf, loaded):
        model.unlearn(**by_name)
        assert gap(model, refit) < 1e-10
        assert model.alpha_ == refit.alpha_
        assert model.receipts_[-1]["exactness"] == {"exact": True, "reasons": []}
    parts = make(**KINDS[kind]).fit(X[:12], y[:12]).partial_fit(X[12:], y[12:])
    site = make(**KINDS[kind]).fit(X[:30], y[:30]).merge(make(**KINDS[kind]).fit(X[30:], y[30:]))
    for model in (parts, site):
        assert gap(model, make(**KINDS[kind]).fit(X, y)) < 1e-10
    clf.save_pretrained(tmp_path / "adapter")
    public = FastNTKClassifier.from_pretrained(tmp_path / "adapter", backbone=network)
    assert np.array_equal(public.predict_proba(X), clf.predict_proba(X))
    assert public.augment == loaded.augment == "flip"


def test_kept_features_are_those_of_one_row(pictures):
    X, y = pictures
    clf = make(keep="features").fit(X, y, sample_ids=[*range(60)])
    for picture, same in ((X[5:6], True), (mirrored(X[5:6]), False)):
        ((found,),) = clf.find(picture, n=1)
        assert (found["sample_id"], found["same"]) == (5, same)
        assert found["similarity"] == pytest.approx(1)
    before = parameters(clf)
    assert np.allclose(parameters(clf.rebuild()), before, rtol=1e-9)
    assert np.allclose(parameters(clf.rebuild(X)), before, rtol=1e-9)


@settings(deadline=None, max_examples=10)
@given(npst.arrays(np.uint8, (6, 8, 8), elements=st.integers(0, 255)))
def test_what_is_its_own_mirror_image(X):
    """Such pictures, and copies of them, are learned and scored as without augment."""
    X = np.maximum(X, mirrored(X))
    X = np.concatenate([X, X[:2]])
    y = np.arange(8) % 3
    found, plain = (make(augment=one, alpha=0.1).fit(X, y) for one in ("flip", None))
    np.testing.assert_allclose(found.decision_function(X), plain.decision_function(X), atol=1e-9)


def test_search_scores_as_folds_predict(pictures):
    X, y = pictures
    folds = [(np.arange(12, 60), np.arange(12)), (np.r_[:12, 24:60], np.arange(12, 24))]
    folds += [(np.arange(24), np.arange(24, 60))]
    alphas = {"alphas": ("auto", 0.3), "cv": folds, "scoring": "neg_log_loss"}
    search = make(FastNTKClassifierCV, **alphas).fit(X, y)
    for c, alpha in enumerate(alphas["alphas"]):
        for f, (learned, held_out) in enumerate(folds):
            clf = make(alpha=alpha).fit(X[learned], y[learned])
            expected = search.scorer_(clf, X[held_out], y[held_out])
            assert search.cv_results_[f"split{f}_test_score"][c] == pytest.approx(expected)


def test_at_a_finetuned_anchor(pictures, tmp_path):
    X, y = pictures
    clf = make(anchor="finetuned", max_epochs=2).fit(X, y)
    assert np.array_equal(clf.decision_function(X), clf.decision_function(mirrored(X)))
    assert clf.linearity_ < 0.5
    batch = next(clf._adapter.model.batches(clf._rows(X[:8])))
    np.testing.assert_allclose(clf.to_module()(batch).detach(), clf.decision_function(X[:8]), atol=1e-9)
    clf.save(tmp_path / "state")
    loaded = FastNTKClassifier.load(tmp_path / "state", backbone=network).unlearn(X[:6])
    np.testing.assert_allclose(parameters(loaded), parameters(clf.unlearn(X[:6])), rtol=1e-9)
    with pytest.raises(ValueError, match="augment"):
        clf.export_timm(tmp_path / "timm")
    with pytest.raises(ValueError, match="augment"):
        full_ntk(clf, X[6:], y[6:], X[:6], y[:6])


@pytest.mark.parametrize("kind", ["ladder", "norm"])
def test_baselines_and_shadow_models_see_both_views(pictures, kind):
    X, y = pictures
    sets = X[6:], y[6:], X[:6], y[:6]
    clf = make(**KINDS[kind]).fit(X, y)
    published = fast_ntk_dual(clf, *sets)
    for method in (finetune, ssd):
        found = method(clf, *sets, random_state=0).predict_proba(X)
        assert np.array_equal(found, method(clf, *sets, random_state=0).predict_proba(mirrored(X)))
    unlearned, _ = shadow_margins(clf, X, y, n_models=3)
    assert np.isfinite(unlearned).any()
    clf.unlearn(X[:6])
    np.testing.assert_allclose(published.decision_function(X), clf.decision_function(X), atol=1e-8)


def test_what_it_excludes(pictures, blobs):
    X, y = pictures
    with pytest.raises(ValueError, match="mirror"):
        FastNTKClassifier(augment="flip").fit(*blobs)
    with pytest.raises(ValueError, match="augment"):
        make(augment="rotate").fit(X, y)
    with pytest.raises(StateMismatchError, match="augment"):
        make(alpha=0.1).fit(X[:20], y[:20]).merge(make(alpha=0.1, augment=None).fit(X[20:], y[20:]))
