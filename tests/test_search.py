"""FastNTKClassifierCV gives GridSearchCV's answer from one pass."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_classifier import gap

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV, unlearn
from fastntk_sk.exceptions import InsufficientMemoryError
from fastntk_sk.sums import memory
from fastntk_sk.tangents import jacobians

GRID = {"alpha": [0.01, 0.3, 5.0], "tangent_scale": [0.0, 1.0, 3.0]}


@parametrize_with_checks(
    [FastNTKClassifierCV(FastNTKClassifier(random_state=0), alphas=(0.1, 1.0), tangent_scales=(1.0,))]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def noisy(blobs):
    """A problem on which candidates differ."""
    X, y = blobs
    draws = np.random.default_rng(1)
    return X + draws.normal(size=X.shape), y


def search(estimator, **changes):
    settings = {"alphas": GRID["alpha"], "tangent_scales": GRID["tangent_scale"]}
    return FastNTKClassifierCV(estimator, **(settings | changes))


@pytest.mark.parametrize("kernel", ["full", "pseudo"])
@pytest.mark.parametrize(
    ("cv", "scoring", "n_classes"),
    [
        (None, None, 3),
        (4, "neg_log_loss", 3),
        (StratifiedKFold(3, shuffle=True, random_state=0), "f1_macro", 3),
        (3, "roc_auc", 2),
        (3, lambda clf, X, y: clf.decision_function(X).max(), 2),
    ],
)
def test_it_is_the_grid_search(blobs, kernel, cv, scoring, n_classes):
    X, y = noisy(blobs)
    X, y = X[y < n_classes], np.array(["a", "b", "c"])[y[y < n_classes]]
    w = None if callable(scoring) else np.linspace(0.5, 2, len(y))
    estimator = FastNTKClassifier(kernel=kernel, n_components=50, batch_size=8, random_state=0)
    fast = search(estimator, cv=cv, scoring=scoring).fit(X, y, sample_weight=w)
    slow = GridSearchCV(estimator, GRID, cv=cv, scoring=scoring).fit(X, y, sample_weight=w)
    assert fast.best_params_ == slow.best_params_
    assert fast.best_index_ == slow.best_index_
    assert fast.n_splits_ == slow.n_splits_
    assert fast.cv_results_["params"] == slow.cv_results_["params"]
    for name in [key for key in fast.cv_results_ if "score" in key or "param_" in key]:
        np.testing.assert_allclose(
            fast.cv_results_[name], slow.cv_results_[name].astype(float), rtol=1e-6, err_msg=name
        )
    assert gap(fast.best_estimator_, slow.best_estimator_) < 1e-10
    assert fast.score(X, y) == pytest.approx(slow.score(X, y))
    np.testing.assert_array_equal(fast.predict(X), slow.predict(X))
    np.testing.assert_array_equal(fast.classes_, slow.classes_)


@pytest.mark.parametrize("alphas", [("auto", 0.03, 1.0), (0.03, 1.0)])
def test_it_is_the_grid_search_of_a_ladder_too(blobs, alphas):
    X, y = noisy(blobs)
    estimator = FastNTKClassifier(trainable="ladder", n_components=50, random_state=0)
    fast = FastNTKClassifierCV(estimator, alphas=alphas, cv=3).fit(X, y)
    slow = GridSearchCV(estimator, {"alpha": alphas}, cv=3).fit(X, y)
    assert fast.best_params_["alpha"] == slow.best_params_["alpha"]
    assert fast.cv_results_["param_alpha"].tolist() == [*alphas]
    np.testing.assert_allclose(fast.cv_results_["mean_test_score"], slow.cv_results_["mean_test_score"])
    assert gap(fast.best_estimator_, slow.best_estimator_) < 1e-10


def test_every_jacobian_is_taken_once(blobs, monkeypatch):
    X, y = blobs
    jacobian, n_rows = jacobians.TangentNetwork.jacobian, []

    def counted(self, x, *args):
        n_rows.append(len(x))
        return jacobian(self, x, *args)

    monkeypatch.setattr(jacobians.TangentNetwork, "jacobian", counted)
    FastNTKClassifier(batch_size=60, random_state=0).fit(X, y)
    one_fit, n_rows[:] = sum(n_rows), []
    search(FastNTKClassifier(batch_size=60, random_state=0)).fit(X, y)
    assert sum(n_rows) == one_fit


def test_its_estimator_forgets_and_says_what_has_seen_the_rows(blobs):
    X, y = blobs
    estimator = FastNTKClassifier(random_state=0)
    fast = search(estimator).fit(X, y, sample_ids=range(60))
    unlearn(fast, X[:5], sample_ids=range(5))
    refit = clone(fast.best_estimator_).fit(X[5:], y[5:])
    assert gap(fast.best_estimator_, refit) < 1e-10
    receipt = fast.best_estimator_.receipts_[0]
    assert receipt["searched_by"] == ["FastNTKClassifierCV"]
    assert "a search chose" in receipt["exactness"]["reasons"][0]
    assert estimator.get_params() == FastNTKClassifier(random_state=0).get_params()
    assert not hasattr(estimator, "classes_")


def test_images(digits):
    X, y = digits[0][:40], digits[1][:40] % 2
    estimator = FastNTKClassifier(
        "test_resnet", pretrained=False, image_size=32, n_components=20, batch_size=8, random_state=0
    )
    fast = search(estimator, alphas=[0.1], cv=2).fit(list(X), y)
    assert fast.best_params_["alpha"] == 0.1
    assert fast.predict(X).shape == (40,)


def test_a_fold_without_a_class_is_never_predicted(blobs):
    """With KFold on sorted labels a class may be missing: it is -inf, not a crash."""
    X, y = blobs
    order = np.argsort(y)
    fast = search(FastNTKClassifier(random_state=0), cv=KFold(3)).fit(X[order], y[order])
    assert fast.best_score_ == 0


def test_bad_input(blobs, monkeypatch):
    X, y = blobs
    clf = FastNTKClassifier(random_state=0)
    with pytest.raises(TypeError, match="Expected a FastNTKClassifier as estimator"):
        FastNTKClassifierCV(LogisticRegression()).fit(X, y)
    with pytest.raises(ValueError, match='Expected anchor="pretrained"'):
        FastNTKClassifierCV(FastNTKClassifier(anchor="finetuned")).fit(X, y)
    with pytest.raises(ValueError, match="one value at least"):
        search(clf, alphas=()).fit(X, y)
    with pytest.raises(ValueError, match="alpha == -1"):
        search(clf, alphas=(1.0, -1.0)).fit(X, y)
    with pytest.raises(ValueError, match="Expected cv to learn all 60 rows"):
        search(clf, cv=ShuffleSplit(2, test_size=0.3, train_size=0.3)).fit(X, y)
    needed = clf.fit(X, y)._state.model.memory_needed()
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    clf.fit(X, y)
    with pytest.raises(InsufficientMemoryError, match="features and Jacobians of 60 rows"):
        search(clf).fit(X, y)


def test_what_has_no_score_ranks_last(blobs):
    X, y = blobs
    scored = iter([np.nan, 0.5, 0.7] * 3)
    search = FastNTKClassifierCV(
        FastNTKClassifier(random_state=0, n_components=16),
        alphas=(0.1, 0.2, 0.3),
        tangent_scales=1.0,
        cv=3,
        scoring=lambda estimator, X, y: next(scored),
    )
    with pytest.warns(UserWarning, match="1 candidates are not finite"):
        search.fit(X, y)
    assert search.cv_results_["rank_test_score"].tolist() == [3, 2, 1]
    assert search.best_params_ == {"alpha": 0.3, "tangent_scale": 1.0}
    with pytest.raises(TypeError, match="Expected scoring to be a str or a callable, got list"):
        search.set_params(scoring=["accuracy"]).fit(X, y)
    assert search.best_params_["alpha"] == 0.3


@pytest.mark.parametrize("alphas", [[1e-3, 1.0], [1.0, 1e-3]])
def test_the_smallest_ridge_decides_which_weights_are_too_heavy(blobs, alphas):
    X, y = blobs
    search = FastNTKClassifierCV(FastNTKClassifier(random_state=0), alphas=alphas)
    with pytest.raises(ValueError, match=r"at most 1e\+06 "):
        search.fit(X, y, sample_weight=np.full(60, 1e7))
