"""Pictures of deletions, and the page that holds them."""

from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.exceptions import NotFittedError
from torch import nn

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.inputs import drawable
from fastntk_sk.evaluation import (
    ChangedPredictionsDisplay,
    ForgettingTimelineDisplay,
    report_page,
)


class Known:
    """A model whose probabilities are given."""

    def __init__(self, probabilities, classes=(0, 1)):
        self.probabilities, self.classes_ = np.array(probabilities), np.array(classes)

    def predict_proba(self, X):
        return self.probabilities[: len(X)]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_the_timeline_follows_the_receipts(blobs):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0, n_components=16).fit(X, y)
    with pytest.raises(ValueError, match="Expected at least one receipt"):
        ForgettingTimelineDisplay.from_estimator(clf)
    for rows in (X[:4], X[4:5], X[5:12]):
        clf.unlearn(rows)
    display = ForgettingTimelineDisplay.from_estimator(clf)
    (rows,) = display.rows.values()
    assert rows.tolist() == [60, 56, 55, 48]
    assert [text.get_text() for text in display.ax_.texts] == ["-4", "-1", "-7"]
    _, ax = plt.subplots()
    assert ForgettingTimelineDisplay.from_estimator(clf, ax=ax).ax_ is ax
    with pytest.raises(NotFittedError):
        ForgettingTimelineDisplay.from_estimator(FastNTKClassifier())


def test_approximate_deletions_have_their_own_colour():
    receipt = {"time": "2026-01-01T00:00:00+00:00", "n_rows": 1, "chain": "a"}
    exact, approximate = {"exact": True, "reasons": []}, {"exact": False, "reasons": ["drift"]}
    receipts = [
        receipt | {"exactness": exact, "n_samples_learned": 9},
        receipt | {"exactness": approximate, "n_samples_learned": 8},
    ]
    legend = ForgettingTimelineDisplay(receipts).plot().ax_.get_legend()
    assert len(legend.get_texts()) == 2


def test_merged_sites_have_their_own_lines(blobs):
    X, y = blobs
    parts = [
        FastNTKClassifier(random_state=0, trainable="head", backbone=nn.Identity())
        .partial_fit(X[rows], y[rows], classes=[0, 1, 2])
        .unlearn(X[rows][:2])
        for rows in (slice(0, 25), slice(25, 60))
    ]
    display = ForgettingTimelineDisplay.from_estimator(parts[0].merge(parts[1]))
    assert [rows.tolist() for rows in display.rows.values()] == [[25, 23], [35, 33]]


def test_pictures_are_drawn_as_the_model_sees_them(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 10, 20] + [0] * 762)
    assert drawable(picture).tolist()[0][0] == [200, 10, 20]
    assert drawable((torch.zeros(3, 2, 5), 7)).shape == (2, 5, 3)


def test_what_changed_most_comes_first():
    X = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4)
    before = Known([[1, 0], [0.5, 0.5], [0.9, 0.1]])
    after = Known([[0.9, 0.1], [0.4, 0.6], [0, 1]])
    display = ChangedPredictionsDisplay.from_estimators(before, after, X, n_images=2)
    np.testing.assert_allclose(display.changes, [0.9, 0.1])
    np.testing.assert_array_equal(display.images[0], X[2])
    assert (display.before[0], display.after[0]) == ("0", "1")
    assert len(display.axes_) == 2
    with pytest.raises(ValueError, match="Expected 2 axes"):
        display.plot(plt.subplots()[1])
    with pytest.raises(ValueError, match="same classes"):
        ChangedPredictionsDisplay.from_estimators(before, Known(after.probabilities, [0, 2]), X)
    with pytest.raises(ValueError, match="got 3 vectors"):
        ChangedPredictionsDisplay.from_estimators(before, after, np.zeros((3, 4)))


def test_the_page_escapes_and_needs_no_connection(blobs):
    X, y = blobs
    names = np.array(["<b>", "&", "c"])[y]
    before = FastNTKClassifier(random_state=0, n_components=16).fit(X, names)
    clf = deepcopy(before).unlearn(X[:4])
    page = report_page(clf, X=X, y=names, before=before, title="<i>")
    assert "<i>" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert page.count("<img") == 1  # vectors have no pictures
    assert "src='data:image/png;base64," in page
    assert "http" not in page
    assert f"{clf.score(X, names):.1%}" in page
    assert "Deletions" not in report_page(before)
    assert report_page(clf, X=pd.DataFrame(X), y=names, before=before).count("<img") == 1
