"""Modes and settings of torch around a call, which a model server or a notebook may have."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV, unlearn
from fastntk_sk.baselines import max_loss


@contextmanager
def setting(change, usual, value):
    before = usual()
    change(value)
    try:
        yield
    finally:
        change(before)


MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "anomalies": lambda: torch.autograd.detect_anomaly(check_nan=True),
    "profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
    "deterministic": lambda: setting(
        torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled, True
    ),
    "float64": lambda: setting(torch.set_default_dtype, torch.get_default_dtype, torch.float64),
    "float16": lambda: setting(torch.set_default_dtype, torch.get_default_dtype, torch.float16),
}
KINDS = {"ladder": {}, "finetuned": {"trainable": "norm", "anchor": "finetuned", "max_epochs": 1}}
anywhere = pytest.mark.parametrize("mode", [pytest.param(mode, id=name) for name, mode in MODES.items()])
pytestmark = pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.conv(x)))).mean((2, 3))


def calls(X, y, path, backbone, **params):
    """Do what changes an estimator and what reads it, and return what is left of it all."""
    settings = {"n_components": 8, "batch_size": 8, "image_size": 8, "random_state": 0}
    clf = FastNTKClassifier(backbone, **settings | params)
    clf.fit(X[:20], y[:20], classes=np.unique(y)).unlearn(X[:2])
    clf.save(path / "state")
    clf = FastNTKClassifier.load(
        path / "state", backbone=None if isinstance(backbone, str) else backbone
    )
    clf.partial_fit(X[20:25], y[20:25])
    unlearn(clf, X[3:4])
    assert clf.can_unlearn(X[4:5])["possible"]
    clf.rebuild(X[[2, *range(4, 25)]])
    return clf, np.concatenate([clf.decision_function(X), clf.predict_proba(X)])


@pytest.fixture(scope="module")
def expected(digits, tmp_path_factory):
    """What comes out without any mode, by the kind of estimator."""
    torch.manual_seed(0)
    net = Net()
    found = {
        kind: calls(*digits, tmp_path_factory.mktemp(kind), net, **params)[1]
        for kind, params in KINDS.items()
    }
    return net, found


@anywhere
@pytest.mark.parametrize("kind", KINDS)
def test_a_mode_of_the_caller_changes_nothing(mode, kind, digits, expected, tmp_path):
    X, y = digits
    net, outside = expected
    with mode():
        clf, found = calls(X, y, tmp_path, net, **KINDS[kind])
    np.testing.assert_array_equal(found, outside[kind])
    clf.unlearn(X[5:6]).partial_fit(X[5:6], y[5:6])  # with what was made within the mode


@pytest.mark.parametrize("name", ["float64", "default device"])
def test_random_weights_are_those_outside_of_a_mode(name, digits):
    X, y = digits
    clf = FastNTKClassifier(
        "test_resnet", trainable="head", pretrained=False, image_size=32, random_state=0
    )
    outside = clf.fit(X[:8], y[:8]).decision_function(X[:3])
    with MODES[name]():
        found = clf.fit(X[:8], y[:8]).decision_function(X[:3])
    np.testing.assert_array_equal(found, outside)


@pytest.mark.parametrize("name", ["inference_mode", "float64"])
def test_vectors_searches_modules_and_baselines(name, blobs):
    X, y = blobs
    search = FastNTKClassifierCV(alphas=["auto"], random_state=0)
    clf = FastNTKClassifier(trainable="head", random_state=0).fit(X, y)
    outside, module = search.fit(X, y).decision_function(X), clf.to_module()
    rows = torch.from_numpy(X)
    with MODES[name]():
        found, own = search.fit(X, y).decision_function(X), clf.to_module()
        max_loss(clf, X[5:], y[5:], X[:5], y[:5], epochs=1, random_state=0).predict(X)
    np.testing.assert_array_equal(found, outside)
    torch.testing.assert_close(own(rows), module(rows), rtol=0, atol=0)


def test_a_network_that_was_made_in_inference_mode(digits):
    X, y = digits
    with torch.inference_mode():
        net = Net()
    for backbone in (net, lambda: net):
        clf = FastNTKClassifier(backbone, trainable="norm", image_size=8, n_components=8, random_state=0)
        assert clf.fit(X[:12], y[:12]).unlearn(X[:1]).n_samples_learned_ == 11
