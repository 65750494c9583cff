"""Learned labels are put right in one step."""

import numpy as np
import pytest
from cases import gap

from fastntk_sk import FastNTKClassifier, verify_receipts
from fastntk_sk.exceptions import (
    AmbiguousSampleError,
    EmptyClassWarning,
    UnknownSampleError,
)

WEIGHTS = np.linspace(0.5, 2, 60)
NAMES = [f"person {i % 12}" for i in range(60)]
WRONG = [2, 11, 30, 31]


def make(**changes):
    return FastNTKClassifier(**({"random_state": 0} | changes))


@pytest.fixture
def mistaken(blobs):
    X, y = blobs
    labels = y.copy()
    labels[WRONG] = (labels[WRONG] + 1) % 3
    return X, y, labels


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainable": "head", "alpha": 0.1},
        {"trainable": "norm", "n_components": 8},
        {"trainable": "norm", "n_components": 8, "kernel": "pseudo"},
        {"keep": "features"},
    ],
)
def test_rectified_is_a_fit_with_right_labels(mistaken, tmp_path, changes):
    X, y, labels = mistaken
    clf = make(**changes).fit(X, labels, WEIGHTS, NAMES)
    clf.rectify(X[WRONG], y[WRONG], request_id="r1")
    right = make(**changes).fit(X, y, WEIGHTS, NAMES)
    assert gap(clf, right) < 1e-10
    assert (clf.n_samples_learned_, clf.n_samples_forgotten_) == (60, 0)
    (receipt,) = clf.receipts_
    assert (receipt["n_rows"], receipt["n_rectified"], receipt["request_ids"]) == (4, 4, ["r1"])
    assert receipt["exactness"]["exact"]
    # ids, weights and features stay with the rows, also in a file
    clf.save(tmp_path / "model")
    clf = FastNTKClassifier.load(tmp_path / "model")
    some = np.array(NAMES) == NAMES[WRONG[0]]
    clf.unlearn(X[some], y[some], sample_ids=np.array(NAMES)[some])
    assert clf.receipts_[-1]["n_rows_left_under_sample_ids"] == 0
    assert gap(clf, make(**changes).fit(X[~some], y[~some], WEIGHTS[~some])) < 1e-10
    clf.export_receipts(tmp_path / "receipts.jsonl")
    assert len(verify_receipts(tmp_path / "receipts.jsonl", adapter=clf)) == 2


def test_all_rows_at_once_and_back(blobs):
    X, y = blobs
    clf = make().fit(X, (y + 1) % 3)
    assert gap(clf.rectify(X, y), make().fit(X, y)) < 1e-9


def test_one_copy_of_two(blobs):
    X, y = blobs
    X = np.concatenate([X, X[:1]])
    clf = make().fit(X, np.r_[y, y[0] + 1])
    with pytest.raises(AmbiguousSampleError):
        clf.rectify(X[:1], y[:1])
    with pytest.warns(UserWarning, match="copies"):
        clf.rectify(X[:1], y[:1], y_old=y[:1] + 1)
    assert gap(clf, make().fit(X, np.r_[y, y[0]])) < 1e-10


def test_nothing_changes_after_an_error(mistaken):
    X, y, labels = mistaken
    clf = make().fit(X, labels)
    before = clf.readout_
    with pytest.raises(UnknownSampleError):
        clf.rectify(X[WRONG] + 1, y[WRONG])
    with pytest.raises(ValueError, match="among the model's classes"):
        clf.rectify(X[WRONG], y[WRONG] + 7)
    with pytest.raises(ValueError, match="inconsistent"):
        clf.rectify(X[WRONG], y[:2])
    np.testing.assert_array_equal(clf.readout_, before)
    assert clf.receipts_ == []


def test_a_class_can_lose_its_last_row(blobs):
    X, y = blobs
    clf = make().fit(X, np.where(np.arange(60) == 5, 3, y))
    with pytest.warns(EmptyClassWarning):
        clf.rectify(X[5:6], y[5:6])
    assert (clf.predict(X) != 3).all()
