"""Plain torch modules, and functions that unlearn, in metrics, reports and baselines."""

import copy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.datasets import load_iris
from torch import nn

from fastntk_sk import FastNTKClassifier
from fastntk_sk.baselines import (
    ModuleClassifier,
    finetune,
    max_loss,
    random_label,
    retrain,
    salun,
    scrub,
    ssd,
)
from fastntk_sk.evaluation import (
    UnlearningDisplay,
    accuracy_gaps,
    activation_distance,
    linearisation_gap,
    margins,
    population_mia_auc,
    relearn_curve,
    residual_knowledge,
    tug_of_war,
    unlearning_report,
)

X, Y = load_iris(return_X_y=True)
Y = np.where(np.arange(150) % 5 == 0, (Y + 1) % 3, Y)
FORGET, RETAIN, TEST = ((X[i::5], Y[i::5]) for i in range(3))
SETS = {"retain": RETAIN, "forget": FORGET, "test": TEST}
STEPPING = (finetune, max_loss, random_label, scrub, salun)


def trained(X, y, seed, epochs=150):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 3)
        )
        x, labels = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(epochs):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x), labels).backward()
            optimiser.step()
    return net  # in training mode


@pytest.fixture(scope="module")
def nets():
    learned = (np.concatenate(parts) for parts in zip(FORGET, RETAIN, strict=True))
    return {
        "original": trained(*learned, seed=0),
        "oracle": trained(*RETAIN, seed=1),
        "second_oracle": trained(*RETAIN, seed=2),
    }


def weights(net):
    return torch.cat([part.flatten().double() for part in net.state_dict().values()])


def test_a_module_is_its_eval_mode_softmax(nets):
    net = nets["original"]
    before = weights(net)
    clf = ModuleClassifier(net, ["a", "b", "c"], batch_size=7)
    with torch.no_grad():
        expected = copy.deepcopy(net).eval()(torch.tensor(X, dtype=torch.float32)).double().numpy()
    np.testing.assert_allclose(clf.decision_function(X), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(clf.predict_proba(X), softmax(expected, axis=1), atol=1e-6)
    assert clf.predict(X).tolist() == np.array(["a", "b", "c"])[expected.argmax(axis=1)].tolist()
    assert net.training
    assert torch.equal(weights(net), before)
    two = ModuleClassifier(nn.Linear(4, 2), [0, 1]).decision_function(torch.tensor(X))
    assert two.shape == (150,)
    wrapped = ModuleClassifier(Output(net), [0, 1, 2], transform=lambda rows: np.stack(rows) / 10)
    np.testing.assert_allclose(wrapped.decision_function([*(10 * X)]), expected, rtol=1e-4, atol=1e-4)


class Output(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return SimpleNamespace(logits=self.net(x))


def test_metrics_take_modules(nets):
    u, r = nets["original"], nets["oracle"]
    of_u, of_r = (ModuleClassifier(net, [0, 1, 2]) for net in (u, r))
    metrics = (
        lambda u, r: accuracy_gaps(u, r, **SETS),
        lambda u, r: tug_of_war(u, r, **SETS),
        lambda u, r: activation_distance(u, r, X),
        lambda u, r: linearisation_gap(u, r, X),
        lambda u, r: residual_knowledge(u, r, *FORGET, radius=0.1),
        lambda u, r: margins(u, X, Y).tolist(),
        lambda u, r: population_mia_auc(u, FORGET, TEST),
    )
    for metric in metrics:
        assert metric(u, r) == metric(of_u, of_r)
    with pytest.raises(ValueError, match="same object"):
        activation_distance(r, r, X)
    with pytest.raises(ValueError, match="classes"):
        activation_distance(nn.Linear(4, 4), r, X)


def test_a_report_runs_functions_on_copies(nets):
    before = {name: weights(net) for name, net in nets.items()}
    seen = []

    def change(original, *rows):
        seen.append(rows)
        original[0].weight.data.zero_()
        return original

    methods = {"mine": change, "a model": ModuleClassifier(nets["oracle"], [0, 1, 2])}
    methods |= {method.__name__: partial(method, random_state=0) for method in STEPPING}
    report = unlearning_report(methods, **nets, **SETS, radius=0.1)
    assert report.index.tolist() == ["original", *methods, "oracle", "second oracle (noise floor)"]
    assert report.loc["a model", "tow"] == 1
    assert report.loc["a model", "residual_knowledge"] == report.loc["oracle", "residual_knowledge"]
    shares = residual_knowledge(nets["original"], nets["oracle"], *FORGET, radius=0.1)
    found = report["residual_knowledge"]
    assert {"unlearned": found["original"], "oracle": found["oracle"]} == shares
    assert found["original"] > found["oracle"]
    for of_call, of_set in zip(seen[0], (*RETAIN, *FORGET), strict=True):
        np.testing.assert_array_equal(of_call, of_set)
    assert all(torch.equal(weights(net), before[name]) for name, net in nets.items())
    sets = {name: (torch.tensor(X), torch.tensor(y)) for name, (X, y) in SETS.items()}
    of_tensors = unlearning_report(methods, **nets, **sets, radius=0.1)
    np.testing.assert_allclose(of_tensors.to_numpy(), report.to_numpy(), atol=1e-5)
    with pytest.raises(TypeError, match="'mine' to return"):
        unlearning_report({"mine": lambda *rows: None}, **nets, **SETS)
    with pytest.raises(ValueError, match="same object"):
        unlearning_report(lambda *rows: nets["original"], **nets, **SETS)
    display = UnlearningDisplay.from_estimators(
        change, original=nets["original"], oracle=nets["oracle"], **SETS
    )
    assert display.accuracies["unlearned"]["test"] == report.loc["mine", "accuracy_test"]


def test_a_report_runs_functions_on_estimators():
    original = FastNTKClassifier(trainable="head", random_state=0).fit(X[::2], Y[::2])
    retain, forget = (X[8::2], Y[8::2]), (X[:8:2], Y[:8:2])
    oracles = (retrain(original, *retain, *forget, random_state=seed) for seed in (0, 1))
    report = unlearning_report(
        {"closed form": lambda model, *rows: model.unlearn(*rows[2:]), "finetune": finetune},
        **dict(zip(("oracle", "second_oracle"), oracles, strict=True)),
        original=original,
        retain=retain,
        forget=forget,
        test=TEST,
    )
    assert report.loc["closed form", "activation_distance_test"] < 1e-6
    assert original.n_samples_forgotten_ == 0


def test_baselines_of_a_module_follow_their_formulas(nets):
    net, state = nets["original"], torch.random.get_rng_state()
    labels = ModuleClassifier(net, ["a", "b", "c"])
    names = np.array(["a", "b", "c"])
    rows = (RETAIN[0], names[RETAIN[1]], FORGET[0], names[FORGET[1]])

    def loss(model, X, y):
        return -np.log(model.predict_proba(X)[np.arange(len(y)), y]).mean()

    start = loss(labels, *FORGET), loss(labels, *RETAIN)
    for method in STEPPING:
        found = method(labels, *rows, random_state=0)
        assert loss(found, *FORGET) > start[0], method
        assert found.classes_.tolist() == ["a", "b", "c"]
        same = method(net, *RETAIN, *FORGET, random_state=0)
        np.testing.assert_array_equal(found.decision_function(X), same.decision_function(X))
        still = method(labels, *rows, epochs=0)
        np.testing.assert_array_equal(still.decision_function(X), labels.decision_function(X))
        running = [net[1].running_mean, found.module[1].running_mean]
        assert torch.equal(*running)  # statistics of batches would mix rows
    assert loss(finetune(labels, *rows, random_state=0), *RETAIN) < start[1]
    assert torch.equal(torch.random.get_rng_state(), state)
    curve = relearn_curve(nets["oracle"], X, Y, FORGET, n_steps=30, learning_rate=0.01)
    assert curve[-1] < curve[0]
    frozen = copy.deepcopy(net)
    frozen[0].requires_grad_(False)
    moved = finetune(frozen, *RETAIN, *FORGET, random_state=0).module
    assert torch.equal(moved[0].weight, net[0].weight)
    assert not torch.equal(moved[4].weight, net[4].weight)


def test_what_modules_are_refused(nets):
    net = nets["original"]
    for bad, match in [
        (X.astype(int), "floats"),
        ([*X.astype(int)], "floats"),
    ]:
        with pytest.raises(ValueError, match=match):
            margins(net, bad, Y)
    with pytest.raises(ValueError, match="two or more"):
        margins(nn.Linear(4, 1), X, Y)
    with pytest.raises(ValueError, match="2 scores a row"):
        ModuleClassifier(net, [0, 1]).predict(X)
    with pytest.raises(ValueError, match="NaN in 150 of 150"):
        ModuleClassifier(nn.Sequential(net, nn.Threshold(0, np.nan), Less()), [0, 1, 2]).predict(X)
    for method in (retrain, ssd):
        for model in (net, ModuleClassifier(net, [0, 1, 2])):
            with pytest.raises(TypeError, match="FastNTKClassifier"):
                method(model, *RETAIN, *FORGET)
    with pytest.raises(ValueError, match="at least one row"):
        max_loss(net, *RETAIN, X[:0], Y[:0])


class Less(nn.Module):
    def forward(self, x):
        return x * np.nan
