"""Residual knowledge against answers known by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.exceptions import UndefinedMetricWarning

from fastntk_sk.evaluation import MissingOracleError, residual_knowledge


class Threshold:
    """Says 1 where the mean of a row is at least a threshold; keeps what it was asked."""

    classes_ = np.array([0, 1])

    def __init__(self, threshold):
        self.threshold, self.asked = threshold, []

    def predict(self, X):
        self.asked.append(X)
        return (np.asarray(X).reshape(len(X), -1).mean(axis=1) >= self.threshold).astype(int)


def test_probabilities_of_a_threshold():
    # the oracle says 1 at 0.5 and more: it gets 0.45 and 0.4 wrong, and 0.55 right
    X, y = np.array([[0.45], [0.4], [0.55]]), [1, 1, 1]
    settings = {"radius": 0.2, "n_draws": 4000}
    shares = residual_knowledge(Threshold(0.35), Threshold(0.5), X, y, **settings)
    # of a uniform step in [-0.2, 0.2]: at least 0.05 and 0.1; at least -0.1 and -0.05
    assert shares["oracle"] == pytest.approx((0.15 + 0.1) / 0.4 / 2, abs=0.02)
    assert shares["unlearned"] == pytest.approx((0.3 + 0.25) / 0.4 / 2, abs=0.02)


def test_known_answers():
    X, y = np.linspace(0, 1, 40)[:, None], np.ones(40, dtype=int)
    oracle = Threshold(0.5)
    same = residual_knowledge(Threshold(0.5), oracle, X, y, radius=0.1)
    assert same["unlearned"] == same["oracle"] > 0
    assert residual_knowledge(Threshold(-1), oracle, X, y, radius=0.1)["unlearned"] == 1
    assert residual_knowledge(Threshold(2), oracle, X, y, radius=0.1)["unlearned"] == 0
    tiny = residual_knowledge(Threshold(0.25), oracle, X, y, radius=1e-6)
    assert tiny == {"unlearned": 0.5, "oracle": 0.0}  # accuracies of the rows that the oracle missed
    again = residual_knowledge(Threshold(0.5), oracle, X, y, radius=0.1, random_state=1)
    assert again != same


@pytest.mark.parametrize("kind", ["uint8", "float", "tensor", "frame"])
def test_perturbed_rows_are_of_the_kind_that_was_passed(kind):
    draws = np.random.default_rng(0)
    X, largest = draws.random((6, 4, 4), dtype=np.float32), 1.0
    if kind == "uint8":
        X, largest = (255 * X).astype(np.uint8), 255
    elif kind == "tensor":
        X = torch.from_numpy(X)
    elif kind == "frame":
        X = pd.DataFrame(X.reshape(6, 16), columns=list("abcdefghijklmnop"))
    oracle = Threshold(300)
    residual_knowledge(Threshold(0), oracle, X, np.ones(6, dtype=int), radius=0.1, n_draws=3)
    _, *near = oracle.asked
    assert len(near) == 3
    for rows in near:
        assert type(rows) is type(X)
        moved = np.abs(np.asarray(rows, dtype=float) - np.asarray(X, dtype=float))
        assert 0.05 * largest < moved.max() <= 0.1 * largest + 0.5 * (kind == "uint8") + 1e-6
        if kind == "frame":  # vectors have no bounds
            assert list(rows.columns) == list(X.columns)
        else:
            assert rows.dtype == X.dtype
            assert rows.min() >= 0
            assert rows.max() <= largest


def test_what_is_refused():
    X, oracle = np.zeros((2, 4, 4), dtype=np.uint8), Threshold(300)
    with pytest.warns(UndefinedMetricWarning, match="every forgotten row right"):
        shares = residual_knowledge(Threshold(0), oracle, X, [0, 0], radius=0.1)
    assert np.isnan([*shares.values()]).all()
    with pytest.raises(ValueError, match="1/255"):
        residual_knowledge(Threshold(0), oracle, X, [1, 1], radius=1e-3)
    for bad in (X.astype(int), ["a.png", "b.png"], [Image.new("P", (4, 4))] * 2):
        with pytest.raises(ValueError, match="floats or of uint8"):
            residual_knowledge(Threshold(0), Whatever(), bad, [1, 1], radius=0.1)
    for bad in ({"radius": 0}, {"radius": -1.0}, {"radius": 0.1, "n_draws": 0}):
        with pytest.raises(ValueError, match=next(reversed(bad))):
            residual_knowledge(Threshold(0), oracle, X, [1, 1], **bad)
    with pytest.raises(MissingOracleError):
        residual_knowledge(oracle, None, X, [1, 1], radius=0.1)
    with pytest.raises(ValueError, match=r"\[7\]"):
        residual_knowledge(Threshold(0), oracle, X, [1, 7], radius=0.1)


class Whatever(Threshold):
    """Is wrong, whatever it is asked."""

    def __init__(self):
        super().__init__(0)

    def predict(self, X):
        return np.zeros(len(X), dtype=int)
