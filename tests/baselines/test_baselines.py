"""Baselines start from the estimator's own network, do what their formulas say, and change nothing."""

import copy

import numpy as np
import pytest
import reference
import torch
from scipy.special import softmax
from torch import nn

from fastntk_sk import FastNTKClassifier
from fastntk_sk.baselines import (
    BaselineClassifier,
    before_solve,
    fast_ntk_dual,
    finetune,
    full_ntk,
    max_loss,
    random_label,
    retrain,
    salun,
    scrub,
    ssd,
    untrained,
)
from fastntk_sk.baselines.gradient import wrong_labels
from fastntk_sk.baselines.network import Original
from fastntk_sk.baselines.recent import departure, squared_gradients
from fastntk_sk.exceptions import EmptyClassWarning, InsufficientMemoryError

STEPPING = [finetune, max_loss, random_label, scrub, salun]
ALL = [*STEPPING, ssd, fast_ntk_dual, full_ntk]


@pytest.fixture(scope="module")
def flipped():
    """A fine-tuned model that has learned 12 wrong labels, and the rows."""
    draws = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = draws.normal(size=(60, 4)) + 2 * np.eye(3, 4)[y]
    y = np.r_[(y[:12] + 1) % 3, y[12:]]
    clf = FastNTKClassifier(
        anchor="finetuned", max_epochs=40, finetune_params={"batch_size": 6}, alpha=1e-4, random_state=0
    )
    return clf.fit(X, y), (X[12:], y[12:], X[:12], y[:12])


def batch_of(X):
    return torch.from_numpy(X.astype(np.float32)).double()


@pytest.mark.parametrize("baseline", ALL, ids=lambda b: b.__name__)
def test_a_baseline_leaves_its_estimator_and_the_global_seeds_alone(flipped, baseline):
    clf, rows = flipped
    before = clf.decision_function(rows[0]), torch.random.get_rng_state(), copy.deepcopy(rows)
    one, two = baseline(clf, *rows, random_state=3), baseline(clf, *rows, random_state=3)
    np.testing.assert_array_equal(one.decision_function(rows[0]), two.decision_function(rows[0]))
    np.testing.assert_array_equal(clf.decision_function(rows[0]), before[0])
    assert torch.equal(torch.random.get_rng_state(), before[1])
    for a, b in zip(rows, before[2], strict=True):
        np.testing.assert_array_equal(a, b)
    assert isinstance(one, BaselineClassifier)
    if baseline in STEPPING:
        same = baseline(clf, *rows, random_state=0, epochs=0)
        np.testing.assert_allclose(same.predict_proba(rows[0]), clf.predict_proba(rows[0]), rtol=1e-6)
    with pytest.raises(ValueError, match="labels"):
        baseline(clf, rows[0], rows[1] + 5, rows[2], rows[3] + 5)


def test_a_baseline_predicts_like_the_estimator(flipped):
    clf, (X, y, *_) = flipped
    same = finetune(clf, X, y, X, y, epochs=0)
    scores = same.decision_function(X)
    np.testing.assert_allclose(same.predict_proba(X), softmax(same.sharpness * scores, axis=1))
    np.testing.assert_array_equal(same.predict(X), same.classes_[scores.argmax(1)])
    X, names = X[y < 2], np.array(["a", "b"])[y[y < 2]]
    clf = FastNTKClassifier(trainable="head", random_state=0).fit(X, names)
    binary = fast_ntk_dual(clf, X[4:], names[4:], X[:4], names[:4])
    clf.unlearn(X[:4])
    np.testing.assert_allclose(binary.decision_function(X), clf.decision_function(X), atol=1e-8)
    np.testing.assert_array_equal(binary.predict(X), np.where(clf.decision_function(X) > 0, "b", "a"))


def test_where_the_stepping_baselines_go(flipped):
    clf, rows = flipped
    X_retain, y_retain, X_forget, y_forget = rows
    clf = before_solve(clf)  # which remembers more than the closing solve
    before = clf.score(X_forget, y_forget)
    assert before > 0.5
    for baseline in (max_loss, random_label, scrub, salun):
        after = baseline(clf, *rows, random_state=0, learning_rate=5e-3)
        assert after.score(X_forget, y_forget) < before
    assert finetune(clf, *rows, random_state=0).score(X_retain, y_retain) > 0.9
    lost = untrained(clf)
    found = finetune(lost, *rows, random_state=0, learning_rate=1e-2)
    assert found.score(X_retain, y_retain) > 0.8 > lost.score(X_retain, y_retain)
    for none in ([], None):  # neither learns from the retain set
        for baseline in (max_loss, random_label):
            alone = baseline(clf, none, none, X_forget, y_forget, random_state=0)
            same = baseline(clf, *rows, random_state=0)
            np.testing.assert_array_equal(alone.predict_proba(X_retain), same.predict_proba(X_retain))
    with pytest.raises(ValueError, match="at least one row"):
        finetune(clf, X_retain[:0], y_retain[:0], X_forget, y_forget)


def test_the_pretrained_anchor_keeps_its_two_terms(blobs):
    """W h(theta) + V (h(theta) - h(theta_0)) is what baselines train there."""
    X, y = blobs
    clf = FastNTKClassifier(trainable="norm", predict_with="network", random_state=0).fit(X, y)
    same = finetune(clf, X[5:], y[5:], X[:5], y[:5], epochs=0)
    np.testing.assert_allclose(same.decision_function(X), clf.decision_function(X), rtol=1e-9)
    network = Original(clf).trainable()
    with torch.no_grad():
        scores = network(batch_of(X)).numpy()
    np.testing.assert_allclose(softmax(scores, axis=1), clf.predict_proba(X), rtol=1e-6)
    with pytest.raises(ValueError, match="anchor"):
        full_ntk(clf, X[5:], y[5:], X[:5], y[:5])


def test_scrub_departs_and_stays_by_its_formula(flipped):
    """One step each, against plain SGD on the formula: Adam's first step is lr times the sign."""
    clf, rows = flipped
    alpha, gamma, T, rate = 0.3, 0.6, 3.0, 1e-4
    settings = {"alpha": alpha, "gamma": gamma, "temperature": T, "learning_rate": rate}
    # start away from the teacher: there the divergence has no gradient
    student = finetune(clf, *rows, random_state=1, epochs=1, learning_rate=1e-2)
    found = scrub(student, *rows, epochs=1, max_epochs=0, batch_size=1000, **settings)
    network = Original(student).trainable()
    x = batch_of(rows[0])
    loss = gamma * nn.functional.cross_entropy(network(x), torch.from_numpy(rows[1]))
    slope = torch.autograd.grad(loss, network.W)[0]
    step = (found.parameters.W - student.parameters.W) * student.sharpness
    clear = slope.abs() > 1e-6
    np.testing.assert_allclose(step[clear], -rate * slope[clear].sign(), rtol=1e-2)
    # the second step on the retain set feels the divergence too: its value, by hand
    teacher, moved = Original(student).trainable(), Original(found).trainable()
    with torch.no_grad():
        p, q = (torch.softmax(net(x) / T, 1) for net in (teacher, moved))
    by_hand = T**2 * float((p * (p / q).log()).sum(1).mean())
    assert by_hand == pytest.approx(departure(teacher, x, moved(x), T).item(), rel=1e-6)
    assert departure(teacher, x, teacher(x), T).item() == pytest.approx(0, abs=1e-12)
    # epochs on the forget set climb the divergence from the teacher there
    x_forget = batch_of(rows[2])
    alone = settings | {"alpha": 0.0, "gamma": 0.0, "learning_rate": 1e-2}
    left = scrub(student, *rows, epochs=4, max_epochs=4, **alone)
    with torch.no_grad():
        assert departure(teacher, x_forget, Original(left).trainable()(x_forget), T).item() > 1e-3


def test_what_sgd_left_and_a_fresh_model(flipped):
    clf, rows = flipped
    sgd, model = before_solve(clf), Original(clf).model
    np.testing.assert_array_equal(sgd.parameters.W[:, :-1], model.directions)
    x = batch_of(rows[0])
    h = torch.cat([model.backbone.net(x), torch.ones(len(x), 1)], 1)
    np.testing.assert_allclose(sgd.decision_function(rows[0]), h @ sgd.parameters.W.T, rtol=1e-6)
    fresh = untrained(clf)
    assert not fresh.decision_function(rows[0]).any()
    net = fresh.model.displaced_copy(fresh.parameters.delta)
    other = FastNTKClassifier(random_state=0).fit(*rows[:2])
    pretrained = Original(other).model.backbone.net
    for mine, original in zip(net.parameters(), pretrained.parameters(), strict=True):
        np.testing.assert_allclose(mine, original, atol=1e-12)
    with pytest.raises(ValueError, match="no SGD"):
        before_solve(other)


def test_a_class_that_is_gone_is_never_predicted(blobs):
    X, y = blobs
    rows = X[y < 2], y[y < 2], X[y == 2], y[y == 2]
    clf = FastNTKClassifier(anchor="finetuned", max_epochs=3, random_state=0).fit(X, y)
    published = fast_ntk_dual(clf, *rows)
    assert not (published.predict(X) == 2).any()
    with pytest.warns(EmptyClassWarning):
        clf.unlearn(X[y == 2])
    np.testing.assert_allclose(published.predict_proba(X), clf.predict_proba(X), atol=1e-9)
    scores = clf.to_module()(batch_of(X))
    assert not (scores.argmax(1) == 2).any()


def test_retraining_is_a_fit_on_the_retain_set(blobs):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0).fit(X, y)
    rows = X[9:], y[9:], X[:9], y[:9]
    oracle, other = retrain(clf, *rows), retrain(clf, *rows, random_state=5)
    expected = FastNTKClassifier(random_state=0).fit(*rows[:2])
    np.testing.assert_array_equal(oracle.readout_, expected.readout_)
    assert (other.readout_ != oracle.readout_).any()
    assert clf.random_state == 0


@pytest.mark.parametrize(
    "params",
    [
        {"trainable": "norm", "anchor": "finetuned", "max_epochs": 3, "tangent_scale": 0.7},
        {"trainable": "head", "alpha": 0.1},
        {"trainable": "ladder", "alpha": "auto"},
        {"trainable": ["ladder", "norm"], "target_scale": 3.0},
    ],
    ids=str,
)
def test_the_published_form_is_our_deletion(blobs, params):
    X, y = blobs
    clf = FastNTKClassifier(n_components=30, random_state=0, **params).fit(X, y)
    published = fast_ntk_dual(clf, X[9:], y[9:], X[:9], y[:9])
    clf.unlearn(X[:9])
    np.testing.assert_allclose(published.parameters.W, clf.readout_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(published.decision_function(X), clf.decision_function(X), atol=1e-7)


def test_what_baselines_make_of_a_ladder(blobs):
    """They train its readout; what needs one set of weights of the network says what to do instead."""
    X, y = blobs
    rows = X[9:], y[9:], X[:9], y[:9]
    clf = FastNTKClassifier(trainable="ladder", n_components=30, random_state=0).fit(X, y)
    beside = FastNTKClassifier(trainable=["ladder", "norm"], n_components=30, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="subset"):
        full_ntk(clf, *rows)
    for baseline in (*STEPPING, ssd):
        found = baseline(clf, *rows, random_state=0)
        assert found.score(X, y) > 0.8
        assert found.parameters.W.shape == clf.readout_.shape
        with pytest.raises(ValueError, match="one of them"):
            baseline(beside, *rows)
    same = finetune(clf, *rows, epochs=0)
    np.testing.assert_allclose(same.predict_proba(X), clf.predict_proba(X), rtol=1e-6)


@pytest.mark.parametrize("block_bytes", [4 * 2**30, 4 * 100 * 30_001])
def test_full_ntk_is_the_dense_solve_over_all_weights(blobs, block_bytes):
    X, y = blobs[0][:25], blobs[1][:25]
    alpha, tangent_scale, target_scale = 0.3, 0.7, 2.0
    scales = {"alpha": alpha, "tangent_scale": tangent_scale, "target_scale": target_scale}
    clf = FastNTKClassifier(anchor="finetuned", max_epochs=3, random_state=0, **scales).fit(X, y)
    found = full_ntk(clf, X[5:], y[5:], X[:5], y[:5], block_bytes=block_bytes)
    original = Original(clf)
    model, W = original.model, original.parameters.W
    net = model.displaced_copy(original.parameters.delta)
    names = [name for name, _ in net.named_parameters()]
    x = batch_of(np.vstack([X[5:], X[:5]]))
    labels = np.r_[y[5:], y[:5]]
    J = reference.jacobian(net, names, x, W[:, :-1]).detach()
    h = torch.cat([net(x), torch.ones(len(x), 1)], 1).detach() / model.scale_h
    kernel = torch.einsum("icp,jdp->icjd", J, J).reshape(75, 75)
    weight = tangent_scale / kernel.diagonal().mean()
    theta = {name: p.detach().clone() for name, p in net.named_parameters()}
    moved = dict(model.tangent.subset.split(torch.from_numpy(clf.displacement_)))
    start = torch.cat(
        [-moved[n].flatten() if n in moved else torch.zeros(theta[n].numel()) for n in names]
    )
    offset = (J @ start.double()).numpy()
    # refit on the retain set alone: the published step must end there
    retain = np.repeat(np.arange(25) < 20, 3)
    blocks = torch.kron(h @ h.T, torch.eye(3, dtype=torch.float64))
    full = (kernel * weight + blocks)[retain][:, retain].numpy()
    targets = target_scale * (np.eye(3)[labels] - 1 / 3)
    dual_of = np.linalg.solve(full + alpha * np.eye(60), (targets - offset).ravel()[retain])
    expected_W = (dual_of.reshape(20, 3).T @ h[:20].numpy()) / model.scale_h
    np.testing.assert_allclose(found.parameters.W, expected_W, rtol=1e-6, atol=1e-9)
    step = weight * (J.reshape(75, -1)[retain].T @ torch.from_numpy(dual_of)) + start
    after = torch.cat([p.detach().flatten() for _, p in found.model.backbone.net.named_parameters()])
    before = torch.cat([theta[n].flatten() for n in names])
    np.testing.assert_allclose(after - before, step, rtol=1e-5, atol=1e-9)


def test_dual_forms_say_their_bytes_first(flipped, monkeypatch):
    clf, rows = flipped
    monkeypatch.setenv("FASTNTK_SK_MEMORY_LIMIT", str(8 * 4 * 180**2))  # kernel, blocks and factor alone
    for baseline in (fast_ntk_dual, full_ntk):
        with pytest.raises(InsufficientMemoryError, match=r"needs [\d,]+ bytes"):
            baseline(clf, *rows)


@pytest.mark.parametrize("anchor", ["pretrained", "finetuned"])
@pytest.mark.parametrize("trainable", ["head", "norm"])
def test_ssd_dampens_by_the_ratio_of_informations(blobs, trainable, anchor):
    """Squared gradients by a loop over rows and plain torch."""
    X, y = blobs
    clf = FastNTKClassifier(anchor=anchor, trainable=trainable, max_epochs=3, random_state=0).fit(X, y)
    found = ssd(clf, X[6:], y[6:], X[:6], y[:6], alpha=1.5, dampening=0.7)
    original = Original(clf)
    network, model = original.trainable(), original.model
    squares = []
    for row, label in zip(batch_of(X), y, strict=True):
        loss = nn.functional.cross_entropy(network(row[None]), torch.tensor([label]))
        slopes = torch.autograd.grad(loss, [network.z, network.W], materialize_grads=True)
        squares.append([slope**2 for slope in slopes])
    theta = [model.backbone.net.get_parameter(n).flatten() for n in model.tangent.subset.names]
    theta = torch.cat([*theta, torch.zeros(0)])
    before = {"delta": theta + original.parameters.delta, "W": original.parameters.W}
    after = {"delta": theta + found.parameters.delta, "W": found.parameters.W}
    for name, rows in zip(before, zip(*squares, strict=True), strict=True):
        whole, own = torch.stack(rows).mean(0), torch.stack(rows[:6]).mean(0)
        chosen = own > 1.5 * whole
        assert not len(chosen) or 0 < chosen.sum() < chosen.numel()
        beta = torch.where(chosen, (0.7 * whole / own).clamp(max=1), torch.ones_like(own))
        np.testing.assert_allclose(after[name], beta * before[name], rtol=1e-6, atol=1e-12)
    squares = tuple(squared_gradients(clf, X[rows], y[rows]) for rows in (slice(6, None), slice(6)))
    again = ssd(clf, X[6:], y[6:], X[:6], y[:6], alpha=1.5, dampening=0.7, squares=squares)
    torch.testing.assert_close(again.parameters, found.parameters, rtol=0, atol=0)
    untouched = ssd(clf, X[6:], y[6:], X[:6], y[:6], alpha=1e12)
    np.testing.assert_allclose(untouched.parameters.W, original.parameters.W)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_salun_moves_the_salient_weights_only(flipped, sparsity):
    clf, rows = flipped
    found = salun(clf, *rows, random_state=0, sparsity=sparsity)
    original = Original(clf)
    change = [getattr(found.parameters, n) - getattr(original.parameters, n) for n in ("W", "delta")]
    moved = torch.cat([part.flatten() for part in change])
    assert (moved.abs() > 1e-12).double().mean() == pytest.approx(1 - sparsity, abs=0.02)
    network = original.trainable()
    x = batch_of(rows[2])
    loss = nn.functional.cross_entropy(network(x), torch.from_numpy(rows[3]))
    slopes = torch.autograd.grad(loss, [network.W, network.z])
    sizes = torch.cat([slope.abs().flatten() for slope in slopes])
    still = sizes < 0.99 * sizes.quantile(sparsity)
    assert still.any()
    assert (moved[still].abs() < 1e-12).all()


def test_wrong_labels_are_wrong(blobs):
    X, y = blobs
    names = np.array(["a", "b", "c"])[y]
    original = Original(FastNTKClassifier(random_state=0).fit(X, names))
    wrong = wrong_labels(original, names, torch.Generator().manual_seed(0))
    assert (wrong != names).all()
    assert set(wrong) == {"a", "b", "c"}
