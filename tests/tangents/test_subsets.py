"""What trainable="auto" takes, and the networks and rows that do not go together."""

import numpy as np
import pytest
from torch import nn

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV
from fastntk_sk.exceptions import JacobianError, SubsetError

TUNED = {"anchor": "finetuned", "max_epochs": 1}
PICTURES = {"backbone": "timm:test_vit", "image_size": 32, "pretrained": False, "n_components": 32}
FLAT = {"backbone": nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)), "image_size": 8}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, ["ladder-grid", "ladder-gap"]),
        (TUNED, ["norm"]),
        (PICTURES, ["ladder-grid", "ladder-gap"]),
        (PICTURES | TUNED, ["prompt"]),
        (FLAT, ["head"]),
        (FLAT | TUNED, "norm"),
        ({"predict_with": "network"}, 'trainable="norm"'),
    ],
)
def test_auto_by_network_and_anchor(digits, blobs, params, expected):
    X, y = (digits[0][:40], digits[1][:40]) if "backbone" in params else blobs
    clf = FastNTKClassifier(random_state=0, **params)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            clf.fit(X, y)
    else:
        assert clf.fit(X, y).trainable_ == expected


class Silent(nn.Module):
    """A block that keeps what it gives to itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, box):
        box[0] = box[0] + self.layers(box[0])


class Boxed(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Silent(), Silent()])

    def forward(self, x):
        box = [x]
        for block in self.blocks:
            block(box)
        return box[0]


@pytest.mark.parametrize(("net", "words"), [(Boxed(), "none with a row"), (nn.Linear(4, 4), "head")])
def test_auto_takes_the_head_where_there_is_no_ladder(blobs, net, words):
    with pytest.raises(SubsetError, match=words):
        FastNTKClassifier(net, trainable="ladder").fit(*blobs)
    clf = FastNTKClassifier(net, random_state=0).fit(*blobs)
    head = FastNTKClassifier(net, trainable="head", random_state=0).fit(*blobs)
    np.testing.assert_array_equal(clf.readout_, head.readout_)
    assert clf.trainable_ == head.trainable_ == ["head"]


class Giving(nn.Module):
    """A perceptron that gives what a function makes of its features."""

    def __init__(self, change):
        super().__init__()
        self.layers, self.change = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), change

    def forward(self, x):
        return self.change(self.layers(x))


@pytest.mark.parametrize(
    "clf", [FastNTKClassifier(), FastNTKClassifier(alpha=0.1), FastNTKClassifierCV()], ids=repr
)
def test_a_row_without_finite_features_is_named(blobs, clf):
    X, y = blobs[0].copy(), blobs[1]
    X[7, 0] = 1e6
    net = Giving(lambda h: h / (h.abs().amax(1, keepdim=True) < 1e4))
    net.layers = nn.Identity()
    with pytest.raises(JacobianError, match="row 7"):
        clf.set_params(backbone=net, random_state=0).fit(X, y)


def test_rows_that_a_network_does_not_take(blobs, digits):
    on_vectors = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    with pytest.raises(ValueError, match="takes pictures"):
        FastNTKClassifier(on_vectors, trainable="ladder", image_size=8).fit(*digits)
    with pytest.raises(ValueError, match="takes vectors"):
        FastNTKClassifier(nn.Sequential(*layers), trainable="ladder").fit(*blobs)
    with pytest.raises(ValueError, match="Expected images"):
        FastNTKClassifier(**PICTURES).fit(*blobs)
    with pytest.raises(ValueError, match="dim 3"):
        FastNTKClassifier(trainable="ladder").fit(*digits)


def test_more_components_than_numbers_mean_all_of_them(blobs):
    clf = FastNTKClassifier(n_components=10**9, random_state=0).fit(*blobs)
    everything = FastNTKClassifier(n_components=None, random_state=0).fit(*blobs)
    np.testing.assert_array_equal(clf.readout_, everything.readout_)
