"""Doubtful labels and duplicates."""

import sys

import numpy as np
import pytest
import torch
from scipy.special import softmax

from fastntk_sk import FastNTKClassifier
from fastntk_sk.inspection import duplicates, label_issues, leave_one_out


@pytest.fixture(scope="module")
def flipped():
    """Rows of which some labels are wrong, and which."""
    draws = np.random.default_rng(1)
    y = np.arange(200) % 4
    X = draws.normal(size=(200, 6)) + 4 * np.eye(4, 6)[y]
    wrong = draws.choice(200, 20, replace=False)
    y[wrong] = (y[wrong] + 1) % 4
    return X, y, np.sort(wrong)


@pytest.mark.parametrize("with_cleanlab", [True, False])
def test_wrong_labels_are_found(flipped, monkeypatch, with_cleanlab):
    X, y, wrong = flipped
    if with_cleanlab:
        pytest.importorskip("cleanlab")
    else:
        monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    clf = FastNTKClassifier(random_state=0).fit(X, y)
    issues = label_issues(clf, X, y)
    found = set(issues.indices[:20].tolist())
    assert len(found & set(wrong.tolist())) >= 15
    own = issues.self_confidence
    assert (np.diff(own[issues.indices]) >= 0).all()
    np.testing.assert_array_equal(own, issues.pred_probs[np.arange(200), y])
    np.testing.assert_allclose(issues.pred_probs.sum(1), 1)
    expected = softmax(np.log(99 * 3) * leave_one_out(clf, X), axis=1)
    np.testing.assert_allclose(issues.pred_probs, expected)
    ones = np.flatnonzero(y == 1)
    doubtful = ones[label_issues(clf, X[ones], y[ones]).indices]
    assert set(wrong[y[wrong] == 1]) <= set(doubtful)
    right = np.array([(label - (row in wrong)) % 4 for row, label in enumerate(y)])
    assert (issues.suggested == right).mean() > 0.95


def test_duplicates_across_labels(digits):
    X = digits[0][:30].reshape(30, -1).astype(float)
    clf = FastNTKClassifier(random_state=0).fit(X, digits[1][:30])
    found = duplicates(clf, np.concatenate([X, X[3:4], X[9:10] + 1.0, X[3:4]]))
    assert {tuple(pair) for pair in found.pairs[found.same].tolist()} == {(3, 30), (3, 32), (30, 32)}
    near = found.pairs[~found.same].tolist()
    assert near[0] == [9, 31]
    assert (found.similarity[:3] > 1 - 1e-6).all()
    assert (np.diff(found.similarity) <= 0).all()
    assert not len(duplicates(clf, X, threshold=1.0).pairs)
    with pytest.raises(ValueError, match="threshold"):
        duplicates(clf, X, threshold=float("nan"))


def test_duplicates_do_not_depend_on_the_default_dtype(blobs):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0).fit(X, y)
    expected, usual = duplicates(clf, X, threshold=0.5), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = duplicates(clf, X, threshold=0.5)
    finally:
        torch.set_default_dtype(usual)
    np.testing.assert_array_equal(found.similarity, expected.similarity)
