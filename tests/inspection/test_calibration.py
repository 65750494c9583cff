"""One temperature from leave-one-out scores."""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier, unlearn, verify_receipts
from fastntk_sk.exceptions import (
    InexactDeletionError,
    InspectionError,
    NoFeaturesError,
    PrivacyWarning,
)
from fastntk_sk.inspection import calibrate, leave_one_out


def make(**changes):
    return FastNTKClassifier(**({"random_state": 0} | changes))


@pytest.mark.parametrize("changes", [{}, {"alpha": 0.01, "target_scale": 3.0}])
def test_the_temperature_is_the_most_likely(blobs, changes):
    X, y = blobs
    weights = np.linspace(0.5, 2, 60)
    clf = make(**changes).fit(X, y, weights)
    before = clf.decision_function(X)
    scores = leave_one_out(clf, X)
    calibrate(clf, X, y)
    np.testing.assert_array_equal(clf.decision_function(X), before)

    def loss(probability_of):
        return -(weights * probability_of[np.arange(60), y]).sum()

    logs = np.log(clf.predict_proba(X))
    sharpness = (logs[0, 1] - logs[0, 0]) / (before[0, 1] - before[0, 0])
    found = loss(log_softmax(sharpness * scores, axis=1))
    for factor in (0.9, 1.1):
        assert found < loss(log_softmax(factor * sharpness * scores, axis=1))


def test_probabilities_hold_on_new_rows():
    X, y = load_digits(return_X_y=True)
    y = np.where(np.random.default_rng(0).random(len(y)) < 0.2, (y + 1) % 10, y)
    clf = make().fit(X[:600], y[:600])

    def error():
        found = clf.predict_proba(X[600:])
        return abs(found.max(1).mean() - (found.argmax(1) == y[600:]).mean())

    before = error()
    calibrate(clf, X[:600])
    assert error() < before / 2


def test_deletions_say_so(blobs, tmp_path):
    X, y = blobs
    clf = calibrate(make(keep="features").fit(X, y))
    given = calibrate(make().fit(X, y), X)
    np.testing.assert_allclose(clf.predict_proba(X), given.predict_proba(X), rtol=1e-6)
    with pytest.raises(InexactDeletionError, match="calibration"):
        unlearn(clf, X[:1], strict=True)
    clf.unlearn(X[:1])
    assert not clf.receipts_[-1]["exactness"]["exact"]
    # with the rows that are left it is what they alone ask for
    calibrate(clf)
    again = calibrate(make(keep="features").fit(X[1:], y[1:]))
    np.testing.assert_allclose(clf.predict_proba(X), again.predict_proba(X), rtol=1e-6)
    clf.save(tmp_path / "model")
    clf.save_pretrained(tmp_path / "adapter")
    for loaded in (
        FastNTKClassifier.load(tmp_path / "model"),
        FastNTKClassifier.from_pretrained(tmp_path / "adapter"),
    ):
        np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    clf.export_receipts(tmp_path / "receipts.jsonl")
    assert len(verify_receipts(tmp_path / "receipts.jsonl", adapter=clf)) == 1


def test_refused(blobs):
    X, y = blobs
    clf = make().fit(X, y)
    before = clf.predict_proba(X)
    with pytest.raises(NoFeaturesError):
        calibrate(clf)
    with pytest.raises(InspectionError, match="all 60 rows"):
        calibrate(clf, X[:50])
    with pytest.raises(ValueError, match="labels alone"):
        calibrate(make(keep="features").fit(X, y), y=y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_a_merge_drops_it(blobs):
    X, y = blobs
    clf = calibrate(make().fit(X[:30], y[:30]), X[:30])
    other = calibrate(make().fit(X[30:], y[30:]), X[30:])
    with pytest.warns(PrivacyWarning, match="travel"):
        clf.merge(other)
    fresh = make().fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), fresh.predict_proba(X), rtol=1e-6)
    assert clf.unlearn(X[:1]).receipts_[-1]["exactness"]["exact"]
