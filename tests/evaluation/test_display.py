"""Figures of deletions, and the page that holds them."""

from copy import deepcopy
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.inputs import drawable
from fastntk_sk.evaluation import (
    ChangedPredictionsDisplay,
    ForgettingTimelineDisplay,
    MissingOracleError,
    UnlearningDisplay,
    margins,
    report_page,
)

APPROXIMATE = {"exact": False, "reasons": ["a <scaler> has seen the rows"]}


def receipt(n_rows, left, chain="a", exactness=None):
    return {
        "time": "2026-01-01T00:00:00+00:00",
        "chain": chain,
        "n_rows": n_rows,
        "n_rectified": 0,
        "n_samples_learned": left,
        "request_ids": ["<case 1>"],
        "n_copies_left": 0,
        "drift": 0.0,
        "checksum": "0" * 32,
        "exactness": exactness or {"exact": True, "reasons": []},
        "residual": 1.25e-15,
        "seconds": 0.5,
    }


RECEIPTS = [receipt(4, 56), receipt(1, 55, exactness=APPROXIMATE), receipt(7, 48)]


class Forgetful(BaseEstimator):
    def fit(self):
        self.receipts_ = RECEIPTS
        return self


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_accuracies_margins_and_relearning_are_drawn(blobs):
    X, y = blobs
    parts = zip(("retain", "forget", "test"), np.split(X, 3), np.split(y, 3), strict=True)
    sets = {name: part for name, *part in parts}
    original = FastNTKClassifier(random_state=0).fit(*sets["retain"]).partial_fit(*sets["forget"])
    oracle = FastNTKClassifier(random_state=0).fit(*sets["retain"])
    unlearned = deepcopy(original).unlearn(*sets["forget"])
    models = {"original": original, "unlearned": unlearned, "oracle": oracle}
    before = dict(plt.rcParams)
    shown = UnlearningDisplay.from_estimators(unlearned, original=original, oracle=oracle, **sets)
    assert dict(plt.rcParams) == before
    bars, *histograms = shown.axes_
    for name, container in zip(models, bars.containers, strict=True):
        assert container.get_label() == name
        expected = [models[name].score(*dataset) for dataset in sets.values()]
        assert [bar.get_height() for bar in container] == pytest.approx(expected)
    for name, ax in zip(models, histograms, strict=True):
        assert ax.get_title() == name
        assert ax.get_xlim() == histograms[0].get_xlim()
        for of, container in zip(("forget", "test"), ax.containers, strict=True):
            edges = np.append([bar.get_x() for bar in container], ax.get_xlim()[1])
            density, _ = np.histogram(margins(models[name], *sets[of]), edges, density=True)
            np.testing.assert_allclose([bar.get_height() for bar in container], density, atol=1e-6)
    figure, axes = plt.subplots(4)
    assert shown.plot(axes) is shown
    assert shown.figure_ is figure
    with pytest.raises(ValueError, match="4 axes"):
        shown.plot(axes[:2])
    with pytest.raises(MissingOracleError):
        UnlearningDisplay.from_estimators(unlearned, original=original, oracle=None, **sets)


def test_the_timeline_follows_the_receipts():
    estimator = Forgetful().fit()
    display = ForgettingTimelineDisplay.from_estimator(estimator)
    assert {chain: rows.tolist() for chain, rows in display.rows.items()} == {"a": [60, 56, 55, 48]}
    _, *points = display.ax_.lines
    found = {line.get_color(): line.get_xydata().tolist() for line in points}
    assert found == {"tab:green": [[1, 56], [3, 48]], "tab:orange": [[2, 55]]}
    merged = ForgettingTimelineDisplay([receipt(2, 23), receipt(2, 33, "b"), receipt(1, 22)]).plot()
    assert [rows.tolist() for rows in merged.rows.values()] == [[25, 23, 22], [35, 33]]
    _, ax = plt.subplots()
    assert ForgettingTimelineDisplay.from_estimator(estimator, ax=ax).ax_ is ax
    with pytest.raises(ValueError, match="at least one receipt"):
        ForgettingTimelineDisplay([]).plot()
    with pytest.raises(NotFittedError):
        ForgettingTimelineDisplay.from_estimator(Forgetful())


def test_images_are_drawn_as_the_model_sees_them():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 20] + [0] * 762)
    assert drawable(image).tolist()[0][0] == [200, 10, 20]
    assert drawable((torch.zeros(3, 2, 5), 7)).shape == (2, 5, 3)


def test_what_changed_most_comes_first():
    def model(probabilities, classes=(0, 1)):
        return SimpleNamespace(
            classes_=np.array(classes), predict_proba=lambda X: np.array(probabilities)
        )

    X = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4)
    before, after = model([[1, 0], [0.5, 0.5], [0.9, 0.1]]), model([[0.9, 0.1], [0.4, 0.6], [0, 1]])
    display = ChangedPredictionsDisplay.from_estimators(before, after, X, n_images=2)
    np.testing.assert_allclose(display.changes, [0.9, 0.1])
    np.testing.assert_array_equal(display.images[0], X[2])
    assert [ax.get_title().split("\n")[0] for ax in display.axes_] == ["0 → 1", "0"]
    with pytest.raises(ValueError, match="2 axes"):
        display.plot(plt.subplots()[1])
    with pytest.raises(ValueError, match="same classes"):
        ChangedPredictionsDisplay.from_estimators(before, model([], [0, 2]), X)
    with pytest.raises(ValueError, match="3 vectors"):
        ChangedPredictionsDisplay.from_estimators(before, after, np.zeros((3, 4)))


def test_the_page_escapes_and_needs_no_connection(blobs, monkeypatch):
    X, y = blobs
    names = np.array(["<b>", "&", "c"])[y]
    clf = FastNTKClassifier(random_state=0, n_components=16).fit(X, names)
    monkeypatch.setattr(FastNTKClassifier, "receipts_", property(lambda self: []))
    assert "Deletions" not in report_page(clf)
    monkeypatch.setattr(FastNTKClassifier, "receipts_", property(lambda self: RECEIPTS))
    page = report_page(clf, X=X, y=names, before=clf)
    for raw in ("<b>", "<scaler>", "<case", "http"):
        assert raw not in page
    for cell in (f"{clf.score(X, names):.1%}", "48", "1.25e-15", "0.5"):
        assert f"<td>{cell}</td>" in page
    assert "<th>&lt;b&gt;</th>" in page
    for told in ("&lt;case 1&gt;", "0" * 32, clf._adapter.checksum, "free blocks", "mlp"):
        assert told in page
    assert page.count("<td>exact for the model itself</td>") == 2
    assert "<td>approximate: a &lt;scaler&gt; has seen the rows</td>" in page
    assert page.count("<img") == page.count("src='data:image/png;base64,") == 1  # vectors are not drawn
    assert report_page(clf, X=pd.DataFrame(X), y=names, before=clf).count("<img") == 1
