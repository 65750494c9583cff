from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from fastntk_sk import FastNTKClassifier
from fastntk_sk.evaluation import (
    MissingOracleError,
    accuracy_gaps,
    activation_distance,
    algebraic_gap,
    linearisation_gap,
    margins,
    tug_of_war,
)


class Table:
    """A classifier that looks its scores up: X holds row numbers."""

    def __init__(self, scores, classes=(0, 1, 2)):
        self.scores, self.classes_ = np.array(scores, dtype=float), np.array(classes)

    def decision_function(self, X):
        return self.scores[np.ravel(X)]

    predict_proba = decision_function

    def predict(self, X):
        return self.classes_[self.decision_function(X).argmax(axis=1)]


class Unfitted:
    pass


X = np.arange(4)[:, None]
Y = np.array([0, 1, 2, 0])
U = Table([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])  # predicts 0 1 0 1
R = Table([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.2, 0.7], [0.8, 0.1, 0.1]])  # predicts 0 2 2 0
SETS = {"retain": (X[:2], Y[:2]), "forget": (X[2:3], Y[2:3]), "test": (X, Y)}


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return FastNTKClassifier(random_state=0).fit(X, y), X, y


def test_metrics_by_hand():
    # retain 1 and 1/2, forget 0 and 1, test 1/2 and 3/4
    assert accuracy_gaps(U, R, **SETS) == pytest.approx({"retain": 0.5, "forget": 1.0, "test": 0.25})
    assert tug_of_war(U, R, **SETS) == 0
    assert tug_of_war(U, R, **(SETS | {"forget": SETS["test"]})) == pytest.approx(0.5 * 0.75**2)
    expected = np.mean([0, np.sqrt(2) * 0.4, np.sqrt(2) * 0.6, np.sqrt(2) * 0.7])
    assert activation_distance(U, R, X) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=12, max_size=12), st.integers(0, 2**16))
def test_ranges_symmetry_and_identity(labels, seed):
    p, q = np.random.default_rng(seed).dirichlet(np.ones(3), size=(2, 12))
    rows, labels = np.arange(12)[:, None], np.array(labels)
    sets = {name: (rows[i::3], labels[i::3]) for i, name in enumerate(("retain", "forget", "test"))}
    a, b, twin = Table(p), Table(q), Table(p)
    assert 0 <= tug_of_war(a, b, **sets) <= 1
    assert tug_of_war(a, b, **sets) == tug_of_war(b, a, **sets)
    assert tug_of_war(a, twin, **sets) == 1
    assert 0 <= activation_distance(a, b, rows) <= np.sqrt(2)
    assert activation_distance(a, twin, rows) == 0
    assert linearisation_gap(a, twin, rows) == 0


def test_algebraic_gap(iris):
    original, X, y = iris
    unlearned = deepcopy(original).unlearn(X[::7])
    rest = np.arange(len(y)) % 7 > 0
    refit = FastNTKClassifier(random_state=0).fit(X[rest], y[rest])
    assert algebraic_gap(unlearned, refit) < 1e-10
    # by hand, and unlearning nothing is not exact
    parts = [[m.readout_.ravel(), m.displacement_] for m in (original, refit)]
    theta, reference = (np.hstack(part) for part in parts)
    expected = np.linalg.norm(theta - reference) / np.linalg.norm(reference)
    assert algebraic_gap(original, refit) == pytest.approx(expected)
    assert expected > 1e-4


@pytest.mark.parametrize(
    "changed",
    [{"random_state": 1}, {"trainable": "bias"}, {"alpha": 5.0}, {"target_scale": 3.0}],
    ids=str,
)
def test_the_algebraic_gap_is_of_one_problem(iris, changed):
    original, X, y = iris
    other = FastNTKClassifier(**({"random_state": 0} | changed)).fit(X, y)
    with pytest.raises(ValueError, match=f"differs in .*{next(iter(changed))}"):
        algebraic_gap(original, other)
    with pytest.raises(TypeError, match="LogisticRegression"):
        algebraic_gap(original, LogisticRegression(max_iter=500).fit(X, y))


def test_linearisation_gap_by_hand():
    # rows centred: (1, 0, -1) and (2, 0, -2), each shifted by another amount
    one, two = Table([[4, 3, 2], [14, 13, 12]]), Table([[7, 5, 3], [-3, -5, -7]])
    assert linearisation_gap(one, two, X[:2]) == pytest.approx(0.5)
    assert linearisation_gap(two, one, X[:2]) == pytest.approx(1.0)
    # of two classes
    f, g = np.array([1.0, -2.0]), np.array([3.0, -1.0])
    expected = np.linalg.norm(f - g) / np.linalg.norm(g)
    assert linearisation_gap(Table(f, (0, 1)), Table(g, (0, 1)), X[:2]) == pytest.approx(expected)
    # a class that is emptied counts if one of them still has it
    none = -np.inf
    u, r = Table([[1, none, 0]]), Table([[3, none, 0]])
    assert linearisation_gap(u, r, X[:1]) == pytest.approx(2 / 3)
    assert linearisation_gap(u, Table([[1, 0, 0]]), X[:1]) == np.inf
    assert linearisation_gap(u, Table([[0, none, 0]]), X[:1]) == np.inf
    always = Table([np.inf], (0, 1))
    assert linearisation_gap(always, Table([np.inf], (0, 1)), X[:1]) == 0
    assert linearisation_gap(always, Table([2.0], (0, 1)), X[:1]) == np.inf


def test_margins_are_log_odds():
    p = np.array([0.5, 0.6, 0.1, 0.1])
    np.testing.assert_allclose(margins(U, X, Y), np.log(p / (1 - p)))
    named = Table(U.scores, ("a", "b", "c"))
    np.testing.assert_allclose(margins(named, X, list("abca")), margins(U, X, Y))
    found = margins(Table([[1, 0, 0], [0, 1, 0], [1, 1e-20, 0]]), X[:3], [0, 0, 0])  # far out
    assert 700 < found[0] < np.inf
    assert -np.inf < found[1] < -700
    assert found[2] == pytest.approx(20 * np.log(10))


ORACLE_METRICS = {
    "accuracy_gaps": lambda u, r: accuracy_gaps(u, r, **SETS),
    "tug_of_war": lambda u, r: tug_of_war(u, r, **SETS),
    "activation_distance": lambda u, r: activation_distance(u, r, X),
    "algebraic_gap": algebraic_gap,
    "linearisation_gap": lambda u, r: linearisation_gap(u, r, X),
}


@pytest.mark.parametrize("name", ORACLE_METRICS)
def test_no_metric_runs_without_its_oracle(name):
    metric = ORACLE_METRICS[name]
    with pytest.raises(MissingOracleError, match="retrain"):
        metric(U, None)
    with pytest.raises(ValueError, match="same object"):
        metric(U, U)
    with pytest.raises(ValueError, match="classes"):
        metric(U, Table(R.scores, (0, 1, 3)))
    for pair in ((U, Unfitted()), (Unfitted(), U)):
        with pytest.raises(NotFittedError, match="fit"):
            metric(*pair)


def test_bad_sets_and_unknown_labels():
    for bad, match in [
        ((X[:0], Y[:0]), "row in forget"),
        ((X, Y[:2]), "inconsistent numbers"),
        (X, "pair"),
        ((X, ["0", "1", "0", "1"]), r"\['0', '1'\]"),  # equal to no prediction of either: no gap
    ]:
        with pytest.raises(ValueError, match=match):
            accuracy_gaps(U, R, **(SETS | {"forget": bad}))
    for metric in (activation_distance, linearisation_gap):
        with pytest.raises(ValueError, match="at least one row"):
            metric(U, R, X[:0])
    with pytest.raises(ValueError, match=r"\[7\]"):
        margins(U, X, [0, 7, 0, 1])
    with pytest.raises(NotFittedError):
        margins(Unfitted(), X, Y)
