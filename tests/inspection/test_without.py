"""Leave-one-out scores and influence are what real deletions give."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import (
    InspectionError,
    InsufficientMemoryError,
    NoPrivateStateError,
    PrivacyWarning,
    UnknownSampleError,
)
from fastntk_sk.inspection import (
    calibrate,
    influence,
    label_issues,
    learning_curve,
    leave_one_out,
)

MODELS = [
    {},
    {"trainable": "head"},
    {"trainable": "norm", "kernel": "pseudo", "n_components": 8, "tangent_scale": 0.5},
    {"keep": "features"},
]
WEIGHTS = np.linspace(0.5, 2, 60)


def make(**changes):
    return FastNTKClassifier(**({"random_state": 0, "alpha": 0.05, "n_components": 64} | changes))


def without(clf, X):
    """Return what is left after a deletion, of a copy."""
    return copy.deepcopy(clf).unlearn(X)


def scores(clf, X):
    """Return a score for each class, of two classes too."""
    return clf._scores(X).scores


@pytest.mark.parametrize("changes", MODELS)
def test_leave_one_out_is_a_deletion(blobs, changes):
    X, y = blobs
    clf = make(**changes).fit(X, y, WEIGHTS)
    found = leave_one_out(clf, X, y)
    expected = [scores(without(clf, X[[i]]), X[[i]])[0] for i in range(60)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    some = [40, 3, 7]
    np.testing.assert_allclose(leave_one_out(clf, X[some]), found[some], rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", MODELS)
def test_groups_are_left_out_together(blobs, changes):
    X, y = blobs
    clf = make(**changes).fit(X, y, WEIGHTS)
    names = np.array(["a", "b", "c", "b"] * 15)
    found = leave_one_out(clf, X, y, groups=names)
    for name in np.unique(names):
        rows = names == name
        expected = scores(without(clf, X[rows]), X[rows])
        np.testing.assert_allclose(found[rows], expected, rtol=0, atol=1e-10)


def losses(found, y):
    """Return mean squared loss and mean margin of scores, by the definition."""
    targets = np.eye(3)[y] - 1 / 3
    others = np.where(np.eye(3, dtype=bool)[y], -np.inf, found)
    margins = found[np.arange(len(y)), y] - others.max(1)
    return ((found - targets) ** 2).sum(1).mean(), margins.mean()


@pytest.mark.parametrize("changes", MODELS)
@pytest.mark.parametrize("groups", [None, np.arange(40) % 7])
def test_influence_is_that_of_deletions(blobs, changes, groups):
    X, y = blobs
    clf = make(**changes).fit(X[:40], y[:40], WEIGHTS[:40])
    found = influence(clf, X[:40], y[:40], X[40:], y[40:], groups=groups)
    before = losses(scores(clf, X[40:]), y[40:])
    names = np.arange(40) if groups is None else groups
    np.testing.assert_array_equal(found.groups, np.unique(names))
    for place, name in enumerate(np.unique(names)):
        after = losses(scores(without(clf, X[:40][names == name]), X[40:]), y[40:])
        got = found.loss[place], found.margin[place]
        np.testing.assert_allclose(got, np.subtract(after, before), rtol=0, atol=1e-10)


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 4),
    st.floats(1e-3, 10),
    st.sampled_from(["head", "pseudo"]),
)
def test_any_problem(seed, n_classes, alpha, kind):
    draws = np.random.default_rng(seed)
    X, y = draws.normal(size=(12, 3)), np.arange(12) % n_classes
    X[5], y[5] = X[0], y[0]  # one copy of a row that was learned twice
    chosen = {"trainable": "head"}
    if kind == "pseudo":
        chosen = {"trainable": "norm", "kernel": "pseudo", "n_components": 4}
    weights = draws.uniform(0.1, 3, 12)
    weights[5] = weights[0]
    clf = make(alpha=alpha, **chosen).fit(X, y, weights)
    found = leave_one_out(clf, X, y)
    with pytest.warns(PrivacyWarning):  # the copy is still learned
        after = without(clf, X[[5]])
    for i, model in ((5, after), (1, without(clf, X[[1]]))):
        np.testing.assert_allclose(found[i], scores(model, X[[i]])[0], rtol=1e-8, atol=1e-9)


def test_a_class_that_loses_its_last_row(blobs):
    X, y = blobs
    X, y = X[:41], np.r_[y[:40] % 2, 2]
    clf = make().fit(X, y)
    with pytest.warns(UserWarning, match="No rows are left"):
        after = without(clf, X[40:])
    np.testing.assert_allclose(leave_one_out(clf, X, y)[40], scores(after, X[40:])[0], atol=1e-10)
    val = blobs[0][45:], blobs[1][45:] % 2
    margin = losses(scores(after, val[0]), val[1])[1] - losses(scores(clf, val[0]), val[1])[1]
    assert np.isclose(influence(clf, X, y, *val).margin[40], margin, atol=1e-10)


def test_more_rows_than_a_block(blobs):
    X, y = (np.concatenate([part] * 10) for part in blobs)
    X = X + np.random.default_rng(0).normal(size=X.shape) / 10
    clf = make().fit(X, y)
    found = leave_one_out(clf, X, y)
    for i in (0, 511, 512, 599):
        np.testing.assert_allclose(found[i], scores(without(clf, X[[i]]), X[[i]])[0], atol=1e-10)


def test_what_does_not_fit_is_refused_before(blobs, monkeypatch):
    X, y = blobs
    clf = make().fit(X[:50], y[:50])
    state = clf._held.state
    monkeypatch.setenv("FASTNTK_SK_MEMORY_LIMIT", str(state.model.memory_needed() + 2**26))
    leave_one_out(clf, X[:50])
    influence(clf, X[:50], None, X[50:], y[50:])
    with pytest.raises(InsufficientMemoryError, match="validation"):
        influence(clf, X[:50], None, np.broadcast_to(X[0], (10**6, X.shape[1])), np.zeros(10**6, int))
    many, labels = X[np.arange(6000) % 60] + np.arange(6000)[:, None] / 6000, np.arange(6000) % 3
    clf = make(trainable="head").fit(many, labels)
    with pytest.raises(InsufficientMemoryError, match="largest group"):
        leave_one_out(clf, many, groups=np.arange(6000) < 5000)


def test_refused(blobs, tmp_path):
    X, y = blobs
    clf = make().fit(X[:50], y[:50])
    with pytest.raises(UnknownSampleError) as caught:
        leave_one_out(clf, X, y)
    assert caught.value.indices == list(range(50, 60))
    with pytest.raises(UnknownSampleError, match="another label"):
        leave_one_out(clf, X[:50], (y[:50] + 1) % 3)
    with pytest.raises(ValueError, match="leave a row"):
        leave_one_out(clf, X[:50], groups=np.zeros(50))
    with pytest.raises(ValueError, match="among the model's classes"):
        influence(clf, X[:50], None, X[50:], y[50:] + 10)
    with pytest.raises(ValueError, match="0 sample"):
        influence(clf, X[:50], None, X[:0], y[:0])
    for labels in (y[51:], y[50:51]):
        with pytest.raises(ValueError, match="inconsistent"):
            influence(clf, X[:50], None, X[50:], labels)
        with pytest.raises(ValueError, match="inconsistent"):
            learning_curve(clf, X[:50], None, X[50:], labels)
    for groups in ([None, "a"] * 25, [np.nan, 1.0] * 25):
        with pytest.raises(ValueError, match="group for each row"):
            leave_one_out(clf, X[:50], groups=groups)
    with pytest.raises(ValueError, match="got None"):
        leave_one_out(make(keep="features").fit(X, y), None)
    full = make(trainable="norm", n_components=4).fit(X, y)
    with pytest.raises(InspectionError, match="ladder"):
        leave_one_out(full, X, y)
    clf.save_pretrained(tmp_path / "adapter")
    with pytest.raises(NoPrivateStateError):
        leave_one_out(FastNTKClassifier.from_pretrained(tmp_path / "adapter"), X, y)
    with pytest.raises(TypeError, match="FastNTKClassifier"):
        leave_one_out(object(), X, y)


def test_one_class_left(blobs):
    X, y = blobs
    X, y = X[y < 2], y[y < 2]
    clf = make().fit(X, y)
    with pytest.warns(UserWarning, match="No rows are left"):
        clf.unlearn(X[y == 1])
    X, y = X[y == 0], y[y == 0]
    assert (leave_one_out(clf, X)[:, 1] == -np.inf).all()
    calls = [label_issues, calibrate, lambda *rows: influence(*rows, None, X, y)]
    for call in calls:
        with pytest.raises(InspectionError, match="two classes"):
            call(clf, X)
