"""anchor="finetuned": SGD first, then one solve that forgets without SGD and without the retain set."""

import warnings
from copy import deepcopy
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
from skorch.callbacks import Callback, EarlyStopping
from skorch.dataset import ValidSplit
from torch import nn

from fastntk_sk import FastNTKClassifier, unlearn
from fastntk_sk.baselines import before_solve
from fastntk_sk.evaluation import algebraic_gap
from fastntk_sk.exceptions import (
    FineTuningError,
    InexactDeletionError,
    LinearityWarning,
    StateMismatchError,
    UnsavedParameterWarning,
)
from fastntk_sk.training import anchor
from fastntk_sk.training.finetuning import SquaredLoss


def tuned(**changes):
    settings = {
        "anchor": "finetuned",
        "max_epochs": 8,
        "n_components": 20,
        "finetune_params": {"batch_size": 6},
        "random_state": 0,
    }
    return FastNTKClassifier(**(settings | changes))


def cnn():
    return timm.create_model("test_resnet", num_classes=0)


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())


def test_unlearning_is_the_solve_on_the_rest_at_the_same_anchor(blobs, monkeypatch):
    X, y = blobs
    clf = tuned().fit(X, y)
    monkeypatch.setattr(anchor, "finetune", lambda *args, **kwargs: pytest.fail("SGD"))
    clf.unlearn(X[:10]).unlearn(X[10:15])
    assert algebraic_gap(clf, deepcopy(clf).rebuild(X[15:], y[15:])) < 1e-9
    assert "the fine-tuned anchor has seen the rows" in clf.receipts_[-1]["exactness"]["reasons"]
    with pytest.raises(InexactDeletionError, match="anchor has seen"):
        unlearn(clf, X[15:20], strict=True)
    clf.partial_fit(X[:15], y[:15])
    assert clf.n_samples_learned_ == 60


@pytest.mark.parametrize("backbone", ["timm", "module", "prompts"])
def test_to_module_is_the_estimator_in_plain_torch(digits, backbone):
    X, y = digits
    if backbone == "prompts":
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
        clf = tuned(backbone=vit, trainable="prompt", n_prompts=2, image_size=32)
    elif backbone == "timm":
        clf = tuned(backbone=cnn, image_size=32)
    else:
        clf = tuned(backbone=plain(), image_size=8)
    clf.fit(X[:60], y[:60])
    module, state = clf.to_module(), clf._state
    assert not module.training
    batch = next(state.model.batches(clf._rows(X[60:80])))
    with torch.no_grad():
        scores = module(batch).numpy()
    np.testing.assert_allclose(scores, clf.decision_function(X[60:80]), rtol=1e-4, atol=1e-4)
    if backbone == "timm":
        fresh = timm.create_model("test_resnet", num_classes=10)
        fresh.load_state_dict(module.state_dict(), strict=True)
        with torch.no_grad():
            np.testing.assert_allclose(fresh.eval()(batch), scores, rtol=1e-5, atol=1e-5)


def test_running_statistics_and_the_given_module_stay(digits):
    X, y = digits
    net = cnn()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    after = tuned(backbone=net, image_size=32).fit(X[:60], y[:60]).to_module().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    norms = (name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d))
    assert changed <= {f"{name}.{own}" for name in norms for own in ("weight", "bias")}
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_linearity_and_both_ways_to_predict(blobs):
    X, y = blobs
    network = tuned().fit(X, y)
    linear = tuned(predict_with="linear").fit(X, y)
    np.testing.assert_array_equal(network.displacement_, linear.displacement_)
    f, g = (clf.decision_function(X) for clf in (network, linear))
    f, g = (scores - scores.mean(1, keepdims=True) for scores in (f, g))
    gap = np.linalg.norm(f - g) / np.linalg.norm(g)
    assert network.linearity_ == pytest.approx(gap)
    assert 0 < gap < 1
    assert network.score(X, y) > 0.8


def test_a_network_that_does_not_follow_is_warned_of(digits):
    X, y = digits[0][:40], digits[1][:40]
    clf = tuned(backbone=plain(), image_size=8)
    with pytest.warns(LinearityWarning, match="predict_with='linear'") as caught:
        clf.fit(X, y)
    assert clf.linearity_ > 0.5
    (warned,) = (one for one in caught if one.category is LinearityWarning)
    assert warned.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", LinearityWarning)
        clf.set_params(predict_with="linear").fit(X, y)


@pytest.mark.parametrize("trainable", ["head", ["norm", "bias"]])
def test_any_subset(blobs, trainable):
    X, y = blobs
    clf = tuned(trainable=trainable, n_components=None).fit(X, y)
    assert clf.score(X, y) > 0.8
    assert (clf.linearity_ == 0) == (trainable == "head")
    assert len(clf.history_) == 8
    assert clf.history_[-1]["train_loss"] < clf.history_[0]["train_loss"]


def test_skorch_is_reachable(blobs, capsys):
    X, y = blobs
    stop = EarlyStopping(monitor="train_loss", patience=2, threshold=1e9)
    clf = tuned(
        max_epochs=10,
        finetune_params={
            "callbacks": [stop],
            "callbacks__schedule": None,
            "train_split": ValidSplit(4, stratified=True),
            "batch_size": 16,
        },
    ).fit(X, y)
    assert len(clf.history_) == 3
    assert "valid_loss" in clf.history_[0]
    assert capsys.readouterr().out == ""
    assert clf.finetune_params["callbacks"] == [stop]
    assert (stop.misses_, stop.dynamic_threshold_) == (0, None)


def test_squared_loss_and_pull_toward_the_pretrained_values(blobs):
    X, y = blobs
    free = {"criterion": SquaredLoss, "criterion__scale": 2.0, "batch_size": 6}
    loose = tuned(finetune_params=free, target_scale=2.0).fit(X, y)
    assert loose.score(X, y) > 0.8
    pulled = tuned(finetune_params=free | {"optimizer__weight_decay": 30.0}).fit(X, y)
    moved = [clf._state.model.moved.norm() for clf in (pulled, loose)]
    assert moved[0] < 0.7 * moved[1]
    loss = SquaredLoss(scale=2.0, reduction="mean")
    scores = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    assert loss(scores, torch.tensor([0, 1])).item() == pytest.approx(1.0)


def test_weights_count_in_the_loss(blobs):
    X, y = blobs
    flipped = np.r_[y, (y[:20] + 1) % 3]
    weights = np.r_[np.ones(60), np.full(20, 1e-9)]
    clf = tuned().fit(np.vstack([X, X[:20]]), flipped, sample_weight=weights)
    assert clf.score(X, y) > 0.8
    heavy = tuned().fit(
        np.vstack([X, X[:20]]), flipped, sample_weight=np.r_[weights[:60], np.full(20, 9)]
    )
    assert heavy.score(X[:20], flipped[60:]) > 0.8


def test_the_same_seed_is_the_same_fit_and_global_seeds_stay(blobs):
    X, y = blobs
    before = torch.random.get_rng_state(), np.random.mtrand._rand.get_state()[1].copy()
    one, two = tuned().fit(X, y), tuned().fit(X, y)
    np.testing.assert_array_equal(one.readout_, two.readout_)
    assert (one.readout_ != tuned(random_state=1).fit(X, y).readout_).any()
    one.to_module()
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.mtrand._rand.get_state()[1]).all()


def test_save_and_load(blobs, tmp_path):
    X, y = blobs
    clf = tuned(finetune_params={"criterion": SquaredLoss}).fit(X, y).unlearn(X[5:9])
    with pytest.warns(UnsavedParameterWarning, match="finetune_params"):
        clf.save(tmp_path / "model")
    loaded = FastNTKClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.decision_function(X), clf.decision_function(X))
    assert (loaded.history_, loaded.linearity_) == (clf.history_, clf.linearity_)
    np.testing.assert_array_equal(loaded.unlearn(X[:5]).readout_, clf.unlearn(X[:5]).readout_)
    np.testing.assert_array_equal(loaded.displacement_, clf.displacement_)
    left = [before_solve(each).parameters for each in (loaded, clf)]
    torch.testing.assert_close(*left, rtol=0, atol=0)


class _Rates(Callback):
    seen: ClassVar[list[float]] = []

    def on_epoch_end(self, net, **kwargs):
        self.seen.append(net.optimizer_.param_groups[0]["lr"])


@pytest.mark.parametrize(
    "params",
    [
        {"iterator_train__batch_size": 7},
        {"batch_size": -1},
        {"optimizer": torch.optim.Adagrad},
        {"train_split": ValidSplit(3), "batch_size": 16},
    ],
    ids=["iterator", "whole", "adagrad", "split"],
)
def test_the_schedule_fits_every_loop(blobs, params):
    X, y = blobs
    _Rates.seen.clear()
    clf = tuned(finetune_params=params | {"callbacks": [_Rates()]}).fit(X, y)
    assert len(clf.history_) == 8
    assert _Rates.seen[-1] < 0.1 * max(_Rates.seen)  # the cycle is complete


@pytest.mark.parametrize("name", ["max_epochs", "lr"])
def test_the_estimators_own_parameters_are_not_doubled(blobs, name):
    with pytest.raises(ValueError, match="set the estimator's own"):
        tuned(finetune_params={name: 1}).fit(*blobs)


class _Interrupted(nn.CrossEntropyLoss):
    def forward(self, *args):
        raise KeyboardInterrupt


def test_failures_leave_the_estimator_as_it_was(blobs):
    X, y = blobs
    clf = tuned()
    with pytest.raises(AttributeError, match="has no attribute 'partial_fit'") as caught:
        clf.partial_fit(X, y)
    assert "Call fit first" in str(caught.value.__cause__)
    clf.fit(X, y)
    before = clf.decision_function(X)
    with pytest.raises(FineTuningError, match="Lower learning_rate"):
        clf.set_params(learning_rate=1e200).fit(X, y)
    with pytest.raises(KeyboardInterrupt):
        clf.set_params(learning_rate=1e-3, finetune_params={"criterion": _Interrupted}).fit(X, y)
    with pytest.raises(TypeError, match="'finetune_params' parameter"):
        clf.set_params(finetune_params=[]).fit(X, y)
    with pytest.raises(ValueError, match="max_epochs"):
        clf.set_params(finetune_params=None, max_epochs=0).fit(X, y)
    with pytest.raises(ValueError, match="learning_rate"):
        clf.set_params(max_epochs=1, learning_rate=0).fit(X, y)
    np.testing.assert_array_equal(clf.decision_function(X), before)
    with pytest.raises(StateMismatchError, match="backbone weights"):
        clf.merge(tuned(random_state=0).fit(X[:30], y[:30]))
    with pytest.raises(ValueError, match="got tangents of"):
        FastNTKClassifier(trainable="norm").fit(X, y).to_module()
    assert not hasattr(clf.set_params(anchor="pretrained", learning_rate=1e-3).fit(X, y), "linearity_")
