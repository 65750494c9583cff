from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
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
    prediction_agreement,
    tug_of_war,
)


class Table(ClassifierMixin, BaseEstimator):
    """A classifier that looks its scores up: X holds row numbers."""

    def __init__(self, scores, classes=(0, 1, 2)):
        self.scores = scores
        self.classes = classes

    def fit(self, X=None, y=None):
        self.classes_ = np.array(self.classes)
        return self

    def decision_function(self, X):
        return np.asarray(self.scores, dtype=float)[np.ravel(X)]

    def predict_proba(self, X):
        return self.decision_function(X)

    def predict(self, X):
        return self.classes_[self.decision_function(X).argmax(axis=1)]


X = np.arange(4)[:, None]
Y = np.array([0, 1, 2, 0])
U = [[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]  # predicts 0 1 0 1
R = [[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]  # predicts 0 2 2 0
SETS = {"retain": (X[:2], Y[:2]), "forget": (X[2:3], Y[2:3]), "test": (X, Y)}


@pytest.fixture
def u():
    return Table(U).fit()


@pytest.fixture
def r():
    return Table(R).fit()


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return FastNTKClassifier(random_state=0).fit(X, y), X, y


def test_accuracy_gaps_by_hand(u, r):
    # retain 1 and 1/2, forget 0 and 1, test 1/2 and 3/4
    gaps = accuracy_gaps(u, r, **SETS)
    assert gaps == pytest.approx({"retain": 0.5, "forget": 1.0, "test": 0.25})
    assert tug_of_war(u, r, **SETS) == 0
    assert tug_of_war(u, r, **(SETS | {"forget": SETS["test"]})) == pytest.approx(0.5 * 0.75**2)


def test_distance_and_agreement_by_hand(u, r):
    expected = np.mean([0, np.sqrt(2) * 0.4, np.sqrt(2) * 0.6, np.sqrt(2) * 0.7])
    assert activation_distance(u, r, X) == pytest.approx(expected)
    assert prediction_agreement(u, r, X) == 0.25


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=12, max_size=12), st.integers(0, 2**16))
def test_ranges_symmetry_and_identity(labels, seed):
    p, q = np.random.default_rng(seed).dirichlet(np.ones(3), size=(2, 12))
    rows, labels = np.arange(12)[:, None], np.array(labels)
    sets = {
        "retain": (rows[:4], labels[:4]),
        "forget": (rows[4:8], labels[4:8]),
        "test": (rows[8:], labels[8:]),
    }
    a, b, twin = Table(p).fit(), Table(q).fit(), Table(p).fit()
    assert 0 <= tug_of_war(a, b, **sets) <= 1
    assert tug_of_war(a, b, **sets) == tug_of_war(b, a, **sets)
    assert tug_of_war(a, twin, **sets) == 1
    assert 0 <= activation_distance(a, b, rows) <= np.sqrt(2)
    assert activation_distance(a, twin, rows) == 0
    assert prediction_agreement(a, twin, rows) == 1
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


def test_algebraic_gap_refuses_other_models(iris):
    original, X, y = iris
    other_seed = FastNTKClassifier(random_state=1).fit(X, y)
    with pytest.raises(ValueError, match="random_state"):
        algebraic_gap(original, other_seed)
    with pytest.raises(ValueError, match="trainable"):
        algebraic_gap(original, FastNTKClassifier(trainable="bias", random_state=0).fit(X, y))
    with pytest.raises(TypeError, match="LogisticRegression"):
        algebraic_gap(original, LogisticRegression(max_iter=500).fit(X, y))


def test_linearisation_gap_by_hand():
    # rows centred: (1, 0, -1) and (2, 0, -2), each shifted by another amount
    one, two = Table([[4, 3, 2], [14, 13, 12]]).fit(), Table([[7, 5, 3], [-3, -5, -7]]).fit()
    assert linearisation_gap(one, two, X[:2]) == pytest.approx(0.5)
    assert linearisation_gap(two, one, X[:2]) == pytest.approx(1.0)


def test_linearisation_gap_of_two_classes(iris):
    _, X, y = iris
    X, y = X[:100], y[:100]
    u, r = (LogisticRegression(C=C).fit(X, y) for C in (1.0, 2.0))
    f, g = u.decision_function(X), r.decision_function(X)
    assert linearisation_gap(u, r, X) == pytest.approx(np.linalg.norm(f - g) / np.linalg.norm(g))


def test_linearisation_gap_with_emptied_classes():
    none = -np.inf
    u, r = Table([[1, none, 0]]).fit(), Table([[3, none, 0]]).fit()
    assert linearisation_gap(u, r, X[:1]) == pytest.approx(2 / 3)
    assert linearisation_gap(u, Table([[1, 0, 0]]).fit(), X[:1]) == np.inf
    always = [Table([np.inf], (0, 1)).fit() for _ in range(2)]
    assert linearisation_gap(*always, X[:1]) == 0
    assert linearisation_gap(always[0], Table([2.0], (0, 1)).fit(), X[:1]) == np.inf
    assert linearisation_gap(u, Table([[0, none, 0]]).fit(), X[:1]) == np.inf


def test_margins_are_log_odds(u):
    p = np.array([0.5, 0.6, 0.1, 0.1])
    np.testing.assert_allclose(margins(u, X, Y), np.log(p / (1 - p)))
    clf = Table(U, ("a", "b", "c")).fit()
    np.testing.assert_allclose(margins(clf, X, list("abca")), margins(u, X, Y))


def test_margins_are_finite_and_exact_far_out():
    certain = Table([[1, 0, 0], [0, 1, 0], [1, 1e-20, 0]]).fit()
    found = margins(certain, X[:3], [0, 0, 0])
    assert np.isfinite(found).all()
    assert found.dtype == np.float64
    assert found[0] > 700
    assert found[1] < -700
    assert found[2] == pytest.approx(20 * np.log(10))


def test_margins_of_an_emptied_class(iris):
    original, X, y = iris
    model = deepcopy(original)
    with pytest.warns(UserWarning, match="No rows are left"):
        model.unlearn(X[y == 2])
    assert np.isfinite(margins(model, X, y)).all()
    assert (margins(model, X[y == 2], y[y == 2]) < -700).all()


ORACLE_METRICS = {
    "accuracy_gaps": lambda u, r: accuracy_gaps(u, r, **SETS),
    "tug_of_war": lambda u, r: tug_of_war(u, r, **SETS),
    "activation_distance": lambda u, r: activation_distance(u, r, X),
    "prediction_agreement": lambda u, r: prediction_agreement(u, r, X),
    "algebraic_gap": algebraic_gap,
    "linearisation_gap": lambda u, r: linearisation_gap(u, r, X),
}


@pytest.mark.parametrize("name", ORACLE_METRICS)
def test_no_metric_runs_without_its_oracle(name, u):
    metric = ORACLE_METRICS[name]
    with pytest.raises(MissingOracleError, match="retrain"):
        metric(u, None)
    with pytest.raises(ValueError, match="very same object"):
        metric(u, u)
    with pytest.raises(ValueError, match="classes"):
        metric(u, Table(R, (0, 1, 3)).fit())
    with pytest.raises(NotFittedError, match="fit"):
        metric(u, Table(R))
    with pytest.raises(NotFittedError, match="fit"):
        metric(Table(U), u)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ((X[:0], Y[:0]), "at least one row in forget"),
        ((X, Y[:2]), "one label a row in forget"),
        (X, r"pair \(X, y\)"),
        ((X,), r"pair \(X, y\)"),
    ],
)
def test_bad_sets(u, r, bad, match):
    with pytest.raises(ValueError, match=match):
        accuracy_gaps(u, r, **(SETS | {"forget": bad}))


def test_empty_rows_and_unknown_labels(u, r):
    for metric in (activation_distance, prediction_agreement, linearisation_gap):
        with pytest.raises(ValueError, match="at least one row"):
            metric(u, r, X[:0])
    with pytest.raises(ValueError, match=r"got \[7\]"):
        margins(u, X, [0, 7, 0, 1])
    names = (X, ["0", "1", "0", "1"])  # equal to no prediction of either: no gap
    for metric in (accuracy_gaps, tug_of_war):
        with pytest.raises(ValueError, match=r"got \['0', '1'\]"):
            metric(u, r, retain=names, forget=names, test=names)
    with pytest.raises(NotFittedError):
        margins(Table(U), X, Y)


@pytest.mark.parametrize("changed", [{"alpha": 5.0}, {"tangent_scale": 2.0}, {"target_scale": 3.0}])
def test_the_algebraic_gap_is_of_one_problem(blobs, changed):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0).fit(X, y)
    other = FastNTKClassifier(random_state=0, **changed).fit(X, y)
    with pytest.raises(ValueError, match=f"differs in .*{next(iter(changed))}"):
        algebraic_gap(clf, other)


def test_the_algebraic_gap_at_a_fine_tuned_anchor(blobs):
    X, y = blobs
    clf = FastNTKClassifier(anchor="finetuned", max_epochs=3, random_state=0).fit(X, y)
    clf.unlearn(X[:9])
    assert algebraic_gap(clf, deepcopy(clf).rebuild(X[9:], y[9:])) < 1e-9
