"""Every kind of bad input is a named, clear error that leaves the estimator as it was."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.exceptions import NotFittedError

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import (
    BackboneNotFoundError,
    ForgetsEverythingError,
    HeavyRowError,
    InsufficientMemoryError,
    StateMismatchError,
    SubsetError,
    UnknownSampleError,
    WeightsUnavailableError,
)
from fastntk_sk.sums import memory

NO_DEVICES = ["meta", "cuda:99", "hpu", "CPU", ""]


@pytest.fixture(scope="module")
def fitted_images(digits):
    X, y = digits[0][:20], digits[1][:20]
    clf = FastNTKClassifier(
        "test_resnet", image_size=32, pretrained=False, n_components=32, random_state=0, batch_size=4
    )
    return clf.fit(X, y), X, y


@pytest.fixture
def fitted(blobs):
    return FastNTKClassifier(random_state=0, n_components=32).fit(*blobs)


def snapshot(clf):
    """Everything that was fitted."""
    return {
        name: pickle.dumps(value)
        for name, value in vars(clf).items()
        if name.startswith("_") or name.endswith("_")
    }


@pytest.mark.parametrize(
    "call",
    ["predict", "predict_proba", "decision_function", "unlearn", "can_unlearn", "rebuild", "save"],
)
def test_unfitted(call, blobs, tmp_path):
    with pytest.raises(NotFittedError):
        getattr(FastNTKClassifier(), call)(tmp_path / "x" if call == "save" else blobs[0])
    with pytest.raises(NotFittedError):
        FastNTKClassifier().merge([])


def test_rows_that_cannot_be_forgotten(fitted, blobs):
    X, y = blobs
    fitted.unlearn(X[:1])
    before = snapshot(fitted)
    with pytest.raises(UnknownSampleError, match=r"Rows \[0, 2\] were not learned") as caught:
        fitted.unlearn(np.vstack([X[0], X[1], X[2] + 1]))
    assert caught.value.indices == [0, 2]
    with pytest.raises(UnknownSampleError, match="another label"):
        fitted.unlearn(X[1:3], [y[1], (y[2] + 1) % 3])
    with pytest.raises(UnknownSampleError, match="another label"):
        fitted.unlearn(X[1:2], [77])
    with pytest.raises(ForgetsEverythingError, match="all 59 learned rows"):
        fitted.unlearn(X[1:])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fitted.unlearn(X[1:3], y[1:2])
    with pytest.raises(ValueError, match="one sample id a row"):
        fitted.unlearn(X[1:3], sample_ids=["a"])
    with pytest.raises(ValueError, match="1d array"):
        fitted.unlearn(X[1:3], sample_ids=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="copies to be"):
        fitted.unlearn(X[1:3], copies="some")
    assert snapshot(fitted) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X[:, :2], "features"),
        (lambda X: np.where(X[0, 0] == X, np.nan, X), "NaN"),
        (lambda X: np.where(X[0, 0] == X, np.inf, X), "infinity"),
        (lambda X: X[:0], "0 sample"),
        (lambda X: X[0], "Expected 2D array"),
        (lambda X: X.astype(complex), "Complex data"),
    ],
)
def test_bad_vectors(fitted, blobs, change, message):
    X, y = blobs
    before = snapshot(fitted)
    bad = change(X)
    for call in (fitted.predict, fitted.unlearn, lambda X: fitted.partial_fit(X, y[: len(X)])):
        with pytest.raises(ValueError, match=message):
            call(bad)
    assert snapshot(fitted) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X.reshape(len(X), -1), "Reshape flattened pictures"),
        (lambda X: np.repeat(X[:, None], 3, axis=1), "Channels come last"),
        (lambda X: np.repeat(X[..., None], 2, axis=3), "got row 0 of shape"),
        (lambda X: X.astype(np.int64), "dtype int64"),
        (lambda X: X.astype(float), r"Scale them to \[0, 1\]"),
        (lambda X: X / 255 - 0.5, r"Scale them to \[0, 1\]"),
        (lambda X: np.where(X > 200, np.nan, X / 255), "NaN or infinity"),
        (lambda X: X[:0], "0 sample"),
        (lambda X: [], "0 sample"),
        (lambda X: [X[0], "no/such/file.png"], "No such file|no file at"),
        (lambda X: [X[0], 7], "got int in row 1"),
        (lambda X: [X[0], X[1].astype(int)], "row 1 of dtype"),
        (lambda X: [X[0], Image.new("F", (8, 8), 7)], "Row 1 cannot be read.*from 0 to 1"),
        (lambda X: [X[0], Path(__file__)], "Row 1 cannot be read"),
        (lambda X: "picture.png", "single str"),
        (lambda X: X[:, :0], "got row 0 of shape"),
    ],
)
def test_bad_images(fitted_images, change, message):
    clf, X, y = fitted_images
    before = snapshot(clf)
    bad = change(X)
    for call in (clf.predict, clf.unlearn, lambda X: clf.partial_fit(X, y[: len(X)])):
        with pytest.raises(ValueError, match=message):
            call(bad)
    assert snapshot(clf) == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"anchor": "nowhere"}, "'anchor' parameter"),
        ({"alpha": 0.0}, "'alpha' parameter"),
        ({"alpha": float("nan")}, "'alpha' parameter"),
        ({"alpha": 1e300}, "'alpha' parameter"),
        ({"tangent_scale": -1.0}, "'tangent_scale' parameter"),
        ({"tangent_scale": float("inf")}, "'tangent_scale' parameter"),
        ({"target_scale": 0.0}, "'target_scale' parameter"),
        ({"target_scale": 1e200}, "'target_scale' parameter"),
        ({"pretrained": "no"}, "'pretrained' parameter"),
        *(({"device": device}, "device of this machine") for device in NO_DEVICES),
        ({"verbose": "loud"}, "'verbose' parameter"),
        ({"backbone": 7}, "'backbone' parameter"),
        ({"trainable": None}, "'trainable' parameter"),
        ({"n_components": 0}, "'n_components' parameter"),
        ({"image_size": 0}, "'image_size' parameter"),
        ({"image_size": (8, 0)}, "image_size"),
        ({"image_size": (8, 8, 8)}, "image_size"),
        ({"trainable": []}, "Expected trainable to be one of"),
        ({"kernel": "pseudo", "anchor": "finetuned"}, "kernel"),
        ({"kernel": "pseudo", "predict_with": "network"}, "kernel"),
        ({"trainable": "ladder", "anchor": "finetuned"}, "ladder"),
        ({"trainable": "ladder", "predict_with": "network"}, "ladder"),
        ({"anchor": "finetuned", "tangent_scale": 0}, "tangent_scale"),
        (
            {"trainable": "blocks.*"},
            r"matches no parameter .* What fits this backbone: "
            r"'ladder' \(with anchor=\"pretrained\"\), 'norm'",
        ),
        ({"trainable": "prompt"}, "Prompt tokens need a Vision Transformer"),
    ],
)
def test_bad_parameters(blobs, params, message):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0, n_components=32).fit(X, y)
    before = snapshot(clf)
    with pytest.raises(ValueError, match=message):
        clf.set_params(**params).fit(X, y)
    assert snapshot(clf) == before


def test_a_state_goes_to_no_device_that_is_not_there(fitted, tmp_path):
    fitted.save(tmp_path / "state")
    for device in NO_DEVICES[:-1]:
        with pytest.raises(StateMismatchError, match="device of this machine"):
            FastNTKClassifier.load(tmp_path / "state", device=device)


def test_labels(fitted, blobs):
    X, y = blobs
    before = snapshot(fitted)
    with pytest.raises(ValueError, match="one class"):
        fitted.fit(np.hstack([X, X]), np.zeros(60, dtype=int))
    with pytest.raises(ValueError, match="one class"):
        fitted.fit(X, np.zeros(60, dtype=int))
    with pytest.raises(ValueError, match="Unknown label type"):
        fitted.fit(X, X[:, 0])
    with pytest.raises(ValueError, match="Add them to classes"):
        FastNTKClassifier().partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match="only zeros|zero"):
        fitted.fit(X, y, sample_weight=np.zeros(60))
    with pytest.raises(ValueError, match="[Nn]egative"):
        fitted.fit(X, y, sample_weight=-np.ones(60))
    for learn in (fitted.fit, fitted.partial_fit):
        with pytest.raises(HeavyRowError, match="60 rows"):
            learn(X, y, sample_weight=np.full(60, 1e12))
    assert snapshot(fitted) == before


def test_the_heaviest_rows_that_are_taken_leave_next_to_no_trace(blobs):
    X, y = blobs
    weights = np.r_[np.full(5, 1e6), np.ones(55)]
    without = FastNTKClassifier(alpha=0.25, random_state=0).fit(X[5:], y[5:])
    found = FastNTKClassifier(alpha=0.25, random_state=0).fit(X, y, sample_weight=weights).unlearn(X[:5])
    np.testing.assert_allclose(found.decision_function(X), without.decision_function(X), atol=1e-7)


def test_backbone_names(digits):
    X, y = digits
    with pytest.raises(BackboneNotFoundError, match="Did you mean 'tf_efficientnet_lite0'"):
        FastNTKClassifier("tf_eficientnet_lite0").fit(X, y)
    with pytest.raises(BackboneNotFoundError, match="callable that returns one, got int"):
        FastNTKClassifier(lambda: 3).fit(X, y)
    with pytest.raises(BackboneNotFoundError, match=r"resnet18\.a1_in1k"):
        FastNTKClassifier("resnet18.no_such_tag").fit(X, y)
    with pytest.raises(SubsetError, match="got EfficientNet"):
        FastNTKClassifier("tf_efficientnet_lite0", trainable="prompt", image_size=32).fit(X, y)


@pytest.mark.parametrize("name", ["resnet18", "hf-hub:nobody/nothing", "local-dir:/no/such/folder"])
def test_weights_that_cannot_be_loaded(name, digits):
    with pytest.raises(WeightsUnavailableError, match="pretrained=False"):
        FastNTKClassifier(name, image_size=32).fit(*digits)


def test_a_module_of_pictures_needs_their_size(digits):
    """The size of the first picture would be published, and stay when that picture is forgotten."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    with pytest.raises(ValueError, match="image_size="):
        FastNTKClassifier(net, trainable="head").fit(*digits)


LADDER = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "trainable": "ladder"}


@pytest.mark.parametrize(
    ("params", "fits", "message"),
    [
        ({"trainable": "full"}, (256, 64, 3, 32 * 68_096 * 8, 32), "n_components=64 .*kernel=.pseudo"),
        (LADDER, (64, 0, 10, 0, 32), "n_components=64 would fit"),
    ],
)
def test_memory_is_estimated_before_anything_is_allocated(
    blobs, digits, monkeypatch, params, fits, message
):
    rows = digits if params is LADDER else blobs
    available = memory.memory_needed(*fits)
    monkeypatch.setattr(memory, "available_memory", lambda: available)
    with pytest.raises(InsufficientMemoryError, match=message):
        FastNTKClassifier(n_components=30_000, **params).fit(*rows)
    FastNTKClassifier(n_components=64, **params).fit(*rows)


def test_a_failed_solve_leaves_everything_as_it_was(fitted, blobs, monkeypatch):
    from fastntk_sk import state
    from fastntk_sk.exceptions import SolveError

    def fail(*args, **kwargs):
        raise SolveError("no")

    before = snapshot(fitted)
    monkeypatch.setattr(state, "solve", fail)
    monkeypatch.setattr(state, "solve_without", fail)
    for call in (fitted.unlearn, fitted.rebuild):
        with pytest.raises(SolveError):
            call(blobs[0][:5] if call == fitted.unlearn else blobs[0])
    with pytest.raises(SolveError):
        fitted.partial_fit(*blobs)
    assert snapshot(fitted) == before
