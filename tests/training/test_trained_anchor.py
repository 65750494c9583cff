"""A network that the user has trained as anchor: linearised where it is, and never called exact."""

from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
from cases import gap
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from fastntk_sk import FastNTKClassifier, unlearn
from fastntk_sk.baselines import before_solve, retrain, untrained
from fastntk_sk.exceptions import (
    BackboneError,
    InexactDeletionError,
    LinearityWarning,
    PublicationError,
    StateMismatchError,
)


def inputs(X):
    return torch.from_numpy(X / 255)[:, None].repeat(1, 3, 1, 1)


@pytest.fixture(scope="module")
def network(digits):
    """A small network that its owner has trained, and left in training mode."""
    X, y = digits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16)]
        net = nn.Sequential(*features, nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs(X).float()), torch.from_numpy(y)).backward()
            optimizer.step()
    return net


def make(net, **changes):
    settings = {"image_size": 8, "random_state": 0, "precision": "float64"}
    return FastNTKClassifier(anchor=net, **(settings | changes))


@torch.no_grad()
def outputs(net, X):
    return deepcopy(net).eval().double()(inputs(X)).numpy()


@torch.no_grad()
def apart(clf, x):
    """Return the outputs of a network from its features and its classifier, as they were taken apart."""
    state = clf._state
    W = state.tuning.W
    return state.model.backbone.net(x) @ W[:, :-1].T + W[:, -1]


def test_the_anchor_is_the_network_as_it_is(digits, network):
    X, y = digits
    before, expected = deepcopy(network.state_dict()), outputs(network, X)
    clf = make(network, predict_with="linear").fit(X[:80], y[:80])
    np.testing.assert_allclose(apart(clf, inputs(X)), expected, rtol=1e-9, atol=1e-9)
    still = make(network, alpha=1e14, predict_with="network").fit(X[:80], y[:80])
    assert np.abs(still.displacement_).max() < 1e-9
    clf = make(network).fit(X[:80], y[:80])
    true = expected[np.arange(80), y[:80]]
    margins = true - (expected[:80].sum(1) - true) / 9
    assert clf._state.settings.target_scale == pytest.approx(margins.mean())
    assert clf.linearity_ > 0
    assert clf.trainable_ == ["norm"]
    assert not hasattr(clf, "history_")
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_deletion_is_exact_for_the_model_there_and_says_that_it_is_not_exact(digits, network):
    X, y = digits
    clf = make(network, target_scale=5.0).fit(X[:80], y[:80])
    refit = make(network, target_scale=5.0).fit(X[20:80], y[20:80])
    after = deepcopy(clf).unlearn(X[:15]).unlearn(X[15:20])
    assert gap(after, refit) < 1e-10
    assert gap(clf, refit) > 1e-3
    reasons = ["the trained module that is the anchor has seen the rows"]
    assert after.receipts_[-1]["exactness"] == {"exact": False, "reasons": reasons}
    assert after.receipts_[-1]["anchor"] == "trained"
    with pytest.raises(InexactDeletionError, match="anchor has seen"):
        unlearn(clf, X[:15], strict=True)
    sites = [make(network, target_scale=5.0).fit(X[part], y[part]) for part in np.split(np.r_[:80], 2)]
    assert gap(sites[0].merge(sites[1]), clf) < 1e-10
    assert gap(after.partial_fit(X[:20], y[:20]), clf) < 1e-10
    with pytest.raises(ValueError, match="anchor was trained"):
        after.partial_fit(X[:1], [10])
    for refused in (untrained, before_solve, lambda clf: retrain(clf, X[20:], y[20:], X[:20], y[:20])):
        with pytest.raises(ValueError, match="Train that module without"):
            refused(clf)


def test_another_classifier_is_another_anchor(digits, network):
    X, y = digits
    other = deepcopy(network)
    other[-1].weight.data *= 2
    clf = make(network, target_scale=5.0).fit(X[:80], y[:80])
    with pytest.raises(StateMismatchError, match="probe directions"):
        clf.merge(make(other, target_scale=5.0).fit(X[80:], y[80:]))


def test_what_is_saved_needs_the_network(digits, network, tmp_path):
    X, y = digits
    clf = make(network).fit(X[:80], y[:80])
    clf.save(tmp_path / "model")
    loaded = FastNTKClassifier.load(tmp_path / "model", backbone=network)
    assert loaded.anchor is network
    assert loaded.backbone == clf.backbone
    np.testing.assert_array_equal(loaded.decision_function(X), clf.decision_function(X))
    np.testing.assert_array_equal(loaded.unlearn(X[:5]).readout_, clf.unlearn(X[:5]).readout_)
    loaded.save(tmp_path / "model")
    again = FastNTKClassifier.load(tmp_path / "model", backbone=network)
    np.testing.assert_array_equal(again.displacement_, clf.displacement_)
    other = deepcopy(network)
    other[0].weight.data += 1
    for backbone, message in (
        (None, "backbone="),
        ("mlp", "backbone="),
        (other, "Expected the weights"),
    ):
        with pytest.raises(StateMismatchError, match=message):
            FastNTKClassifier.load(tmp_path / "model", backbone=backbone)
    with pytest.raises(PublicationError, match="to_module"):
        clf.save_pretrained(tmp_path / "adapter")


def test_the_result_is_the_owners_network_with_other_weights(digits, network):
    X, y = digits
    clf = make(network, trainable=["norm", "bias"]).fit(X[:80], y[:80]).unlearn(X[:5])
    mine = deepcopy(network)
    mine.load_state_dict(clf.to_module().state_dict(), strict=True)
    np.testing.assert_allclose(outputs(mine, X), clf.decision_function(X), rtol=1e-5, atol=1e-5)


class Renamed(nn.Module):
    """Its last linear layer by definition is not its classifier, and has as many outputs."""

    def __init__(self, after=None):
        super().__init__()
        self.norm, self.score, self.last = nn.LayerNorm(4), nn.Linear(6, 3, bias=False), nn.Linear(4, 3)
        self.widen, self.after = nn.Linear(3, 6), after or nn.Identity()

    def forward(self, x):
        return self.after(self.score(torch.tanh(self.widen(self.last(self.norm(x))))))


class Failing(nn.Module):
    def forward(self, x):
        raise KeyError("what torch does not raise")


class Odd(nn.Module):
    """Its classifier has two names, and it writes into its batch."""

    def __init__(self):
        super().__init__()
        self.norm, self.first = nn.LayerNorm(8), nn.Linear(8, 10)
        self.second = self.first

    def forward(self, x):
        return self.second(self.norm(x.sub_(0.5).flatten(1)[:, :8]))


def test_a_classifier_of_two_names_and_a_batch_that_is_written_into(digits):
    X, y = digits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Odd()
    clf = make(net).fit(X[:80], y[:80])
    np.testing.assert_allclose(apart(clf, inputs(X)), outputs(net, X), rtol=1e-9, atol=1e-9)
    net.load_state_dict(clf.to_module().state_dict())
    np.testing.assert_allclose(outputs(net, X), clf.decision_function(X), rtol=1e-5, atol=1e-5)


def test_weights_that_are_no_numbers(digits, network):
    broken = deepcopy(network)
    broken[0].weight.data[0] = np.nan
    with pytest.raises(BackboneError, match="0.weight"):
        make(broken).fit(*digits)


@pytest.mark.parametrize(
    ("net", "head", "message"),
    [
        (Renamed(), "score", None),
        (Renamed(), None, r"\['score', 'last'\]"),
        (Renamed(), "last", "classifier 'last'"),
        (Renamed(), "norm", "classifier 'norm'"),
        (Renamed(), "nowhere", "classifier 'nowhere'"),
        (Renamed(nn.Softmax(1)), "score", "such as a softmax"),
        (Renamed(nn.Linear(3, 4)), None, r"each of the 3 classes.*\(2, 4\)"),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), nn.Flatten(0)), None, "each of the 3 classes"),
        (nn.Linear(5, 3), None, "takes batches of shape"),
        (nn.LSTM(4, 3), None, r"returns a tensor.*got tuple"),
        (Failing(), None, "takes batches of shape"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_the_classifier_is_found_or_named(blobs, net, head, message):
    X, y = blobs
    clf = FastNTKClassifier(anchor=net, head=head, random_state=0)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            clf.fit(X, y)
        return
    with torch.no_grad():
        expected = net(torch.from_numpy(X).float())
    found = apart(clf.fit(X, y), torch.from_numpy(X).float())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["mlp", "test_resnet"])
def test_a_network_of_timm(digits, backbone, tmp_path):
    X, y = digits[0][:20], digits[1][:20]
    net = timm.create_model("test_resnet", num_classes=10)
    small = {"image_size": 32, "n_components": 8, "batch_size": 10}
    clf = FastNTKClassifier(backbone, anchor=net, random_state=0, **small).fit(X, y)
    batch = next(clf._state.model.batches(clf._rows(X[:8])))
    with torch.no_grad():
        np.testing.assert_allclose(apart(clf, batch), net.eval()(batch), rtol=1e-4, atol=1e-4)
    assert clf._state.model.backbone.spec.mean == net.pretrained_cfg["mean"]
    clf.save(tmp_path / "model")
    loaded = FastNTKClassifier.load(tmp_path / "model", backbone=net)
    assert loaded.backbone == backbone
    np.testing.assert_array_equal(loaded.predict(X), clf.predict(X))
    clf.export_timm(tmp_path / "timm")
    exported = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert exported.num_classes == 10


def test_a_name_says_how_pictures_are_prepared_after_loading_too(digits, network, tmp_path):
    X, y = digits
    clf = make(network, backbone="test_resnet", pretrained=False).fit(X[:80], y[:80])
    assert clf._state.model.backbone.spec.mean == (0.5, 0.5, 0.5)
    for i in range(2):
        clf.save(tmp_path / "model")
        loaded = FastNTKClassifier.load(tmp_path / "model", backbone=network)
        np.testing.assert_array_equal(loaded.decision_function(X), clf.decision_function(X))
        clf = loaded.unlearn(X[i : i + 1])


def test_what_would_be_ignored_is_refused(blobs):
    X, y = blobs
    with pytest.raises(ValueError, match="backbone to be a name"):
        FastNTKClassifier(nn.Linear(4, 3), anchor=nn.Linear(4, 3)).fit(X, y)
    with pytest.raises(ValueError, match="head=None"):
        FastNTKClassifier(head="fc").fit(X, y)


def test_a_search_and_a_clone(digits, network):
    X, y = digits
    search = GridSearchCV(make(network, n_components=8), {"alpha": [0.1, 1e6]}, cv=2).fit(X[:60], y[:60])
    assert search.best_estimator_.anchor is not network
    assert unlearn(search, X[:3]).best_estimator_.n_samples_forgotten_ == 3
    copied = clone(search.best_estimator_).fit(X[:60], y[:60])
    assert gap(copied, search.best_estimator_.partial_fit(X[:3], y[:3])) < 1e-10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": "ladder"}, "Pass the module as backbone"),
        ({"trainable": "head"}, "pass the module as backbone"),
        ({"trainable": ["norm", "prompt"]}, "pass the module as backbone"),
        ({"kernel": "pseudo"}, "kernel"),
        ({"tangent_scale": 0}, "tangent_scale > 0"),
        ({"image_size": None}, "Expected image_size"),
        ({"head": 3}, "'head' parameter"),
    ],
    ids=str,
)
def test_what_makes_no_sense_with_it(digits, network, changes, message):
    with pytest.raises(ValueError, match=message):
        make(network, **changes).fit(*digits)


def test_it_has_to_be_fitted_first_and_is_warned_of(digits, network):
    X, y = digits
    clf = make(network)
    with pytest.raises(AttributeError) as caught:
        clf.partial_fit(X, y)
    assert "Call fit first" in str(caught.value.__cause__)
    with pytest.warns(LinearityWarning, match="raise alpha"):
        clf.set_params(alpha=1e-4, target_scale=100.0).fit(X[:60], y[:60])


def test_weights_that_are_not_finite_are_named(digits, network):
    damaged = deepcopy(network)
    damaged[-1].weight.data[0, 0] = torch.nan
    with pytest.raises(BackboneError, match="finite weights.*7.weight"):
        make(damaged).fit(*digits)
