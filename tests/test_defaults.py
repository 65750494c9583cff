"""trainable="auto", and classes that enter later."""

import numpy as np
import pytest
import torch
from torch import nn

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV
from fastntk_sk.exceptions import BackboneNotFoundError, JacobianError, SubsetError
from fastntk_sk.tangents.subsets import resolve

SHARED = [
    {},
    {"trainable": "head"},
    {"trainable": "norm", "kernel": "pseudo"},
    {"trainable": ("ladder", "norm"), "kernel": "pseudo", "n_components": 30},
    {"alpha": 0.5},
]


def trained(clf):
    """Return what the model was trained on, by name."""
    return [*clf._adapter.settings.trainable]


def test_auto_by_network_and_anchor(digits, blobs):
    X, y = digits
    pictures = {"image_size": 32, "pretrained": False, "random_state": 0}
    assert "ladder-grid" in trained(FastNTKClassifier(random_state=0).fit(*blobs))
    clf = FastNTKClassifier("timm:test_vit", **pictures).fit(X[:40], y[:40])
    assert "ladder-gap" in trained(clf)
    tuned = {"anchor": "finetuned", "max_epochs": 1}
    assert trained(FastNTKClassifier(random_state=0, **tuned).fit(*blobs)) == ["norm"]
    clf = FastNTKClassifier("timm:test_vit", **pictures, **tuned).fit(X[:40], y[:40])
    assert trained(clf) == ["prompt"]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    clf = FastNTKClassifier(flat, image_size=8, random_state=0).fit(X[:40], y[:40])
    assert trained(clf) == ["head"]
    with pytest.raises(SubsetError, match="norm"):
        FastNTKClassifier(flat, image_size=8, **tuned).fit(X[:40], y[:40])


def test_anything_else_is_left_as_it_is():
    assert resolve(["norm", "bias"], nn.Identity(), "pretrained") == ["norm", "bias"]


def test_a_network_is_not_displaced_by_a_ladder(blobs):
    with pytest.raises(ValueError, match='trainable="norm"'):
        FastNTKClassifier(predict_with="network").fit(*blobs)


@pytest.mark.parametrize("params", SHARED, ids=str)
@pytest.mark.parametrize("new", ["a", "c"])
def test_new_classes_are_those_of_one_fit(blobs, params, new):
    X, y = blobs
    names = np.array(["a", "b", "c"])[y]
    later = names == new
    clf = FastNTKClassifier(random_state=0, **params).fit(X[~later], names[~later])
    assert len(clf.classes_) == 2
    clf.partial_fit(X[later], names[later])
    clf.unlearn(X[:10], y_forget=names[:10])
    expected = FastNTKClassifier(random_state=0, **params).fit(X[10:], names[10:])
    assert clf.classes_.tolist() == ["a", "b", "c"]
    assert clf.alpha_ == expected.alpha_
    np.testing.assert_allclose(clf.readout_, expected.readout_, atol=1e-10 * abs(clf.readout_).max())
    np.testing.assert_allclose(clf.decision_function(X), expected.decision_function(X), atol=1e-9)
    np.testing.assert_array_equal(clf.predict(X), expected.predict(X))


def test_a_class_that_is_named_before_it_has_rows(blobs, tmp_path):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0).fit(X[y < 2], y[y < 2])
    clf.partial_fit(X[y == 2][:5], y[y == 2][:5], classes=[0, 1, 2, 7])
    assert clf.classes_.tolist() == [0, 1, 2, 7]
    assert not (clf.predict(X) == 7).any()
    clf.save(tmp_path / "state")
    again = FastNTKClassifier.load(tmp_path / "state")
    again.partial_fit(X[y == 2][5:], np.full(15, 7))
    assert again.classes_.tolist() == [0, 1, 2, 7]
    assert (again.predict(X) == 7).any()


def test_classes_with_tangents_of_their_own_take_no_new_one(blobs):
    X, y = blobs
    clf = FastNTKClassifier(trainable="norm", random_state=0).fit(X[y < 2], y[y < 2])
    before = clf.decision_function(X)
    with pytest.raises(ValueError, match=r"got \[2\].*kernel=\"pseudo\""):
        clf.partial_fit(X, y)
    np.testing.assert_array_equal(clf.decision_function(X), before)
    with pytest.raises(ValueError, match="Mix of label input types"):
        FastNTKClassifier(random_state=0).fit(X, y).partial_fit(X, y.astype(str))


def test_a_tuned_anchor_takes_no_new_class(blobs):
    X, y = blobs
    clf = FastNTKClassifier(
        anchor="finetuned", trainable="head", max_epochs=1, target_scale=1.0, random_state=0
    )
    clf.fit(X[y < 2], y[y < 2])
    with pytest.raises(ValueError, match="SGD tuned the anchor"):
        clf.partial_fit(X[y == 2], y[y == 2])


@pytest.mark.filterwarnings("ignore:The best:UserWarning")
def test_the_search_tries_auto(blobs):
    X, y = blobs
    search = FastNTKClassifierCV(alphas=["auto", 0.01, 100.0], cv=3, random_state=0).fit(X, y)
    assert search.best_params_["alpha"] in ("auto", 0.01)
    assert len(search.cv_results_["params"]) == 3  # a ladder alone has no tangents to scale
    assert search.alpha_ > 0


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


def test_auto_takes_the_head_where_blocks_give_no_tensors(blobs):
    net = Boxed()
    with pytest.raises(SubsetError, match="none with a row"):
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
    ("change", "words"),
    [
        (lambda h: (h, h), "got tuple"),
        (lambda h: {"features": h}, "got dict"),
        (lambda h: h[:, :, None].squeeze(), "of one"),
        (lambda h: h.sum(1), "Wrap it"),
    ],
)
def test_networks_that_give_no_features(blobs, change, words):
    with pytest.raises(SubsetError, match=words):
        FastNTKClassifier(Giving(change)).fit(*blobs)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_network_is_named(blobs):
    traced = torch.jit.trace(nn.Linear(4, 4), torch.ones(2, 4))
    with pytest.raises(BackboneNotFoundError, match="scripted or traced"):
        FastNTKClassifier(traced).fit(*blobs)


def test_a_row_without_finite_features_is_named(blobs):
    X, y = blobs[0].copy(), blobs[1]
    X[7, 0] = 1e6
    net = Giving(lambda h: h / (h.abs().amax(1, keepdim=True) < 1e4))
    for alpha in ("auto", 0.1):
        with pytest.raises(JacobianError, match="row 7"):
            FastNTKClassifier(net, alpha=alpha, random_state=0).fit(X, y)
    with pytest.raises(JacobianError, match="row 7"):
        FastNTKClassifierCV(net, random_state=0).fit(X, y)


def test_light_weights_are_no_ground_to_choose_a_ridge_on(blobs):
    X, y = blobs
    with pytest.warns(UserWarning, match="a mean near one"):
        FastNTKClassifier(random_state=0).fit(X, y, sample_weight=np.full(len(y), 1 / len(y)))
    FastNTKClassifier(alpha=0.1, random_state=0).fit(X, y, sample_weight=np.full(len(y), 1 / len(y)))


def test_rows_that_a_network_does_not_take(blobs, digits):
    on_vectors = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    with pytest.raises(ValueError, match="Expected a backbone that takes pictures"):
        FastNTKClassifier(on_vectors, trainable="ladder").fit(*digits)
    with pytest.raises(ValueError, match="Expected a backbone that takes vectors"):
        FastNTKClassifier(nn.Sequential(*layers), trainable="ladder").fit(*blobs)
    with pytest.raises(ValueError, match="Expected images"):
        FastNTKClassifier("timm:test_vit", pretrained=False, image_size=32).fit(*blobs)
    with pytest.raises(ValueError, match="dim 3"):
        FastNTKClassifier(trainable="ladder").fit(*digits)


def test_classes_that_lack_a_known_one(blobs):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"without \[1\]"):
        clf.partial_fit(X[y != 1], y[y != 1], classes=[0, 2])


def test_more_components_than_numbers_mean_all_of_them(blobs):
    clf = FastNTKClassifier(n_components=10**9, random_state=0).fit(*blobs)
    everything = FastNTKClassifier(n_components=None, random_state=0).fit(*blobs)
    np.testing.assert_array_equal(clf.readout_, everything.readout_)
