"""Curves at the price of the sums, and pictures of what rows do."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import InspectionError
from fastntk_sk.inspection import (
    AlphaPathDisplay,
    InfluenceDisplay,
    LabelIssuesDisplay,
    influence,
    label_issues,
    learning_curve,
)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def make(**changes):
    return FastNTKClassifier(**({"random_state": 0} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keep": "features"},
        {"trainable": "norm", "kernel": "pseudo", "n_components": 8, "tangent_scale": 2.0},
    ],
)
def test_each_size_is_a_fit(blobs, changes):
    X, y = blobs
    clf = make(**changes).fit(X[:40], y[:40])
    readout = clf.readout_
    val = X[40:], y[40:]
    curve = learning_curve(clf, X[:40], y[:40], *val, train_sizes=(0.25, 0.5, 1), random_state=3)
    order = np.random.RandomState(3).permutation(40)
    for size, score, alpha in zip(curve.train_sizes, curve.test_scores, curve.alphas, strict=True):
        rows = order[:size]
        refit = make(**changes).fit(X[rows], y[rows], classes=[0, 1, 2])
        assert (score, alpha) == (refit.score(*val), refit.alpha_)
    np.testing.assert_array_equal(clf.readout_, readout)
    for sizes in ((0, 0.5), (1.5,), ()):
        with pytest.raises(ValueError, match="train_sizes"):
            learning_curve(clf, X[:40], y[:40], *val, train_sizes=sizes)


def test_doubtful_and_influential_pictures(digits):
    X, y = (part[:60] for part in digits)
    vectors, wrong = X.reshape(60, -1) / 255.0, y.copy()
    wrong[[5, 17]] = (wrong[[5, 17]] + 1) % 10
    clf = make().fit(vectors, wrong)
    found = label_issues(clf, vectors, wrong)
    shown = LabelIssuesDisplay.from_predictions(X, wrong, found, n_images=1)
    (first,) = found.indices[:1]
    np.testing.assert_array_equal(shown.axes_[0].images[0].get_array(), X[first])
    title = shown.axes_[0].get_title()
    assert title == f"{wrong[first]}: {found.suggested[first]}?\n{found.self_confidence[first]:.2f}"
    with pytest.raises(ValueError, match="got none"):
        LabelIssuesDisplay.from_predictions(X, wrong, found | {"indices": []})
    with pytest.raises(ValueError, match="vectors"):
        LabelIssuesDisplay.from_estimator(clf, vectors, wrong)
    effects = influence(clf, vectors, wrong, digits[0][60:].reshape(-1, 64) / 255.0, digits[1][60:])
    drawn = InfluenceDisplay.from_predictions(X, wrong, effects, n_images=4)
    pictures = [ax.images[0].get_array() for ax in drawn.axes_]
    np.testing.assert_array_equal(pictures[0], X[effects.loss.argmax()])
    np.testing.assert_array_equal(pictures[-1], X[effects.loss.argmin()])
    with pytest.raises(ValueError, match="axes"):
        InfluenceDisplay.from_predictions(X, wrong, effects, n_images=4, ax=plt.subplots()[1])


def test_the_path_of_alpha_is_drawn(blobs):
    clf = make().fit(*blobs)
    (line, chosen) = AlphaPathDisplay.from_estimator(clf).ax_.lines
    assert dict(zip(*line.get_data(), strict=True)) == clf.alpha_path_
    assert chosen.get_xdata()[0] == clf.alpha_
    with pytest.raises(ValueError, match="auto"):
        AlphaPathDisplay.from_estimator(make(alpha=0.1).fit(*blobs))


def test_pictures_of_an_image_model(digits):
    X, y = digits[0][:24], digits[1][:24] % 2
    clf = make(backbone="test_resnet", pretrained=False, image_size=32, n_components=16, alpha=0.1).fit(
        X, y
    )
    display = InfluenceDisplay.from_estimator(clf, X, y, X[:4], y[:4], n_images=6)
    assert len(display.axes_) == 6
    with pytest.raises(InspectionError, match="ladder"):
        InfluenceDisplay.from_estimator(
            make(trainable="norm", n_components=4).fit(X.reshape(24, -1) / 255.0, y), X, y, X, y
        )
