"""Learned labels are put right in one step."""

import copy

import numpy as np
import pytest
from cases import gap

from fastntk_sk import FastNTKClassifier, verify_receipts
from fastntk_sk.cli import main
from fastntk_sk.exceptions import (
    AmbiguousSampleError,
    EmptyClassWarning,
    PrivacyWarning,
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


def test_between_two_corrections_rows_are_forgotten(mistaken):
    X, y, labels = mistaken
    for alpha in ("auto", 0.1):
        clf = make(alpha=alpha).fit(X, labels).rectify(X[WRONG[:2]], y[WRONG[:2]]).unlearn(X[40:45])
        clf.rectify(X[WRONG[2:]], y[WRONG[2:]])
        left = np.r_[:40, 45:60]
        assert gap(clf, make(alpha=alpha).fit(X[left], y[left])) < 1e-10


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
    clf.rectify(X[:1], y[:1], y_old=y[:1] + 1)  # both copies have the right label now
    assert gap(clf, make().fit(X, np.r_[y, y[0]])) < 1e-10
    assert clf.receipts_[-1]["n_copies_left"] == 0


def test_copies_with_yet_other_labels(blobs):
    X, y = blobs
    X, labels = np.concatenate([X, X[:1], X[:1]]), np.r_[y, y[0] + 1, y[0] + 2]
    clf = make().fit(X, labels)
    with pytest.raises(ValueError, match="one right label"):
        clf.rectify(X[[0, 0]], y[0] + [0, 1], copies="all")
    right = make().fit(X, np.r_[y, y[0], y[0]])
    assert gap(copy.deepcopy(clf).rectify(X[:1], y[:1], copies="all"), right) < 1e-10
    with pytest.warns(PrivacyWarning, match=r"labels: 1\."):
        clf.rectify(X[:1], y[:1], y_old=y[:1] + 1)
    assert clf.receipts_[-1]["n_copies_left"] == 1


def test_a_restored_backup_is_rectified_again(mistaken, tmp_path):
    X, y, labels = mistaken
    clf = make().fit(X, labels)
    backup = copy.deepcopy(clf)
    clf.rectify(X[WRONG], y[WRONG]).save_pretrained(tmp_path / "adapter")
    backup.rectify(X[WRONG], y[WRONG], redoes=tmp_path / "adapter")
    assert backup.receipts_[-1]["redoes"] == [clf.receipts_[-1]["checksum"]]


def test_reports_tell_rectified_rows_from_forgotten_ones(mistaken, tmp_path, capsys):
    X, y, labels = mistaken
    clf = make().fit(X, labels).rectify(X[WRONG], y[WRONG]).unlearn(X[:1])
    clf.save(tmp_path / "model")
    assert main(["report", str(tmp_path / "model"), "--html", str(tmp_path / "page.html")]) == 0
    told = capsys.readouterr().out
    assert "59 rows learned, 1 forgotten" in told
    assert ["rectified" in line for line in told.splitlines()[1:3]] == [True, False]
    page = (tmp_path / "page.html").read_text()
    row = page[page.index("rows rectified") :]
    assert row.index("<td>0</td>") < row.index("<td>4</td>") < row.index("<td>60</td>")


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
    with pytest.raises(ValueError, match="got None"):
        clf.rectify(None, y[:1], sample_ids=["anna"])
    np.testing.assert_array_equal(clf.readout_, before)
    assert clf.receipts_ == []


def test_a_class_can_lose_its_last_row(blobs):
    X, y = blobs
    clf = make().fit(X, np.where(np.arange(60) == 5, 3, y))
    with pytest.warns(EmptyClassWarning):
        clf.rectify(X[5:6], y[5:6])
    assert (clf.predict(X) != 3).all()
