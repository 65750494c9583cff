"""Any sequence of partial_fit, unlearn and merge is a fit on the rows that are left; new classes too."""

import numpy as np
import pytest
from cases import gap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastntk_sk import FastNTKClassifier

pytestmark = pytest.mark.filterwarnings(
    "ignore::fastntk_sk.exceptions.PrivacyWarning",
    "ignore::fastntk_sk.exceptions.EmptyClassWarning",
)
CLASSES = [0, 1, 2]


def make(kernel="full"):
    return FastNTKClassifier(kernel=kernel, random_state=0, n_components=64, batch_size=8)


def rows_of(numbers):
    """Row number i always has the same content; the label and weight follow from the number."""
    X = np.stack([np.random.default_rng(i).normal(size=3) for i in numbers])
    numbers = np.asarray(numbers)
    return X, numbers % 3, 1.0 + numbers % 2


def learn(estimator, numbers):
    X, y, w = rows_of(numbers)
    return estimator.partial_fit(X, y, classes=CLASSES, sample_weight=w)


batches = st.lists(st.integers(0, 9), min_size=1, max_size=5)
steps = st.lists(
    st.tuples(st.sampled_from(["learn", "forget", "merge"]), batches), min_size=1, max_size=6
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kernel=st.sampled_from(["full", "pseudo"]), start=batches, steps=steps)
def test_every_history_equals_a_refit(kernel, start, steps):
    estimator, left = learn(make(kernel), start), list(start)
    for what, numbers in steps:
        if what == "learn":
            learn(estimator, numbers)
            left += numbers
        elif what == "merge":
            estimator.merge(learn(make(kernel), numbers))
            left += numbers
        else:
            present = list(left)
            wanted = [n for n in numbers if n in present and not present.remove(n)]
            if wanted and len(wanted) < len(left):
                estimator.unlearn(rows_of(wanted)[0])
                left = present
    refit = learn(make(kernel), left)
    assert estimator.n_samples_learned_ == refit.n_samples_learned_ == len(left)
    assert gap(estimator, refit) < 1e-9


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"trainable": "head", "alpha": 0.5},
        {"trainable": "norm", "kernel": "pseudo", "n_components": 30},
        {"trainable": ("ladder", "norm"), "kernel": "pseudo", "n_components": 30},
    ],
    ids=str,
)
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
    assert gap(clf, expected) < 1e-9
    np.testing.assert_allclose(clf.decision_function(X), expected.decision_function(X), atol=1e-9)


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


@pytest.mark.parametrize(
    ("params", "classes", "words"),
    [
        ({"trainable": "norm"}, None, 'kernel="pseudo"'),
        ({"anchor": "finetuned", "trainable": "head", "max_epochs": 1}, None, "the anchor was trained"),
        ({}, [0, 2], r"without \[1\]"),
        ({}, ["0", "1", "2"], "Mix of label input types"),
    ],
)
def test_where_no_class_can_enter(blobs, params, classes, words):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0, **params).fit(X[y < 2], y[y < 2])
    before = clf.decision_function(X)
    with pytest.raises(ValueError, match=words):
        clf.partial_fit(X[y == 2], y[y == 2], classes=classes)
    np.testing.assert_array_equal(clf.decision_function(X), before)
