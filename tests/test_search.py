"""FastNTKClassifierCV gives GridSearchCV's answer from one pass."""

import warnings

import numpy as np
import pytest
import torch
from cases import gap
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV
from fastntk_sk.exceptions import (
    HeavyRowError,
    InsufficientMemoryError,
    PrivacyWarning,
    UnsavedParameterWarning,
)
from fastntk_sk.sums import memory

pytestmark = pytest.mark.filterwarnings("ignore:The best:UserWarning")
GRID = {"alpha": [0.01, 5.0], "tangent_scale": [0.0, 1.0, 3.0]}


@parametrize_with_checks(
    [FastNTKClassifierCV(alphas=(0.1, 1.0), tangent_scales=(1.0,), n_components=32, random_state=0)]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def noisy(blobs):
    """A problem on which candidates differ."""
    X, y = blobs
    draws = np.random.default_rng(1)
    return X + draws.normal(size=X.shape), y


def search(**changes):
    settings = {"alphas": GRID["alpha"], "tangent_scales": GRID["tangent_scale"], "random_state": 0}
    return FastNTKClassifierCV(**(settings | changes))


@pytest.mark.parametrize(
    ("kernel", "cv", "scoring", "n_classes"),
    [
        ("full", None, None, 3),
        ("pseudo", 3, "neg_log_loss", 3),
        ("full", StratifiedKFold(3, shuffle=True, random_state=0), "f1_macro", 3),
        ("pseudo", 2, "roc_auc", 2),
        ("full", 2, lambda clf, X, y: clf.decision_function(X).max(), 2),
    ],
)
def test_it_is_the_grid_search(blobs, kernel, cv, scoring, n_classes):
    X, y = noisy(blobs)
    X, y = X[y < n_classes], np.array(["a", "b", "c"])[y[y < n_classes]]
    w = None if callable(scoring) else np.linspace(0.5, 2, len(y))
    params = {"kernel": kernel, "trainable": "norm", "n_components": 50}
    fast = search(cv=cv, scoring=scoring, **params).fit(X, y, sample_weight=w)
    slow = GridSearchCV(FastNTKClassifier(random_state=0, **params), GRID, cv=cv, scoring=scoring).fit(
        X, y, sample_weight=w
    )
    assert fast.best_params_ == slow.best_params_
    assert fast.best_index_ == slow.best_index_
    assert fast.n_splits_ == slow.n_splits_
    assert fast.cv_results_["params"] == slow.cv_results_["params"]
    for name in [key for key in fast.cv_results_ if "score" in key or "param_" in key]:
        np.testing.assert_allclose(
            fast.cv_results_[name], slow.cv_results_[name].astype(float), rtol=1e-6, err_msg=name
        )
    assert gap(fast, slow.best_estimator_) < 1e-10
    assert fast.best_score_ == pytest.approx(slow.best_score_)
    np.testing.assert_array_equal(fast.predict(X), slow.predict(X))
    np.testing.assert_array_equal(fast.classes_, slow.classes_)


@pytest.mark.parametrize("alphas", [("auto", 0.03, 1.0), (0.03, 1.0)])
def test_it_is_the_grid_search_of_a_ladder_too(blobs, alphas):
    X, y = noisy(blobs)
    params = {"trainable": "ladder", "n_components": 50, "random_state": 0}
    fast = FastNTKClassifierCV(alphas=alphas, cv=3, **params).fit(X, y)
    slow = GridSearchCV(FastNTKClassifier(**params), {"alpha": alphas}, cv=3).fit(X, y)
    assert fast.best_params_["alpha"] == slow.best_params_["alpha"]
    assert fast.cv_results_["param_alpha"].tolist() == [*alphas]
    np.testing.assert_allclose(fast.cv_results_["mean_test_score"], slow.cv_results_["mean_test_score"])
    assert gap(fast, slow.best_estimator_) < 1e-10


def test_every_row_is_read_once(blobs):
    X, y = blobs
    n_read = []

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 60

        def __getitem__(self, i):
            n_read.append(i)
            return np.full((4, 4), X[i, 0] / 10 + 0.5, dtype=np.float32).clip(0, 1)

    search(backbone="test_resnet", pretrained=False, image_size=4, n_components=8).fit(Rows(), y)
    # the first one also shows what kind of rows there are, and three are read four times more
    assert len(n_read) <= 60 + 13


def test_it_forgets_and_says_what_has_seen_the_rows(blobs):
    X, y = blobs
    clf = search(trainable="norm", n_components=50).fit(X, y, sample_ids=range(60))
    clf.unlearn(X[:5], sample_ids=range(5))
    params = {name: clf.get_params()[name] for name in ("trainable", "n_components", "random_state")}
    refit = FastNTKClassifier(**clf.best_params_, **params).fit(X[5:], y[5:])
    assert gap(clf, refit) < 1e-10
    receipt = clf.receipts_[0]
    assert receipt["searched_by"] == ["FastNTKClassifierCV"]
    assert not receipt["exactness"]["exact"]
    assert clf.partial_fit(X[:5], y[:5]).n_samples_learned_ == 60


def test_a_fold_without_a_class_is_never_predicted(blobs):
    """With KFold on sorted labels a class may be missing: it is -inf, not a crash."""
    X, y = blobs
    order = np.argsort(y)
    assert search(cv=KFold(3)).fit(X[order], y[order]).best_score_ == 0


def test_the_edge_of_a_grid_is_said(blobs):
    X, y = blobs
    with pytest.warns(UserWarning, match=r"alpha=1000 is at an edge"):
        search(alphas=(1e3, 1e4)).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(alphas=("auto", 1e4)).fit(X, y)
        search(trainable="norm", alphas=(0.1,), tangent_scales=(0.0,)).fit(X, y)


def test_bad_input(blobs, monkeypatch):
    X, y = blobs
    with pytest.raises(ValueError, match="one value at least"):
        search(alphas=()).fit(X, y)
    with pytest.raises(ValueError, match="'alpha' parameter"):
        search(alphas=(1.0, -1.0)).fit(X, y)
    with pytest.raises(ValueError, match="'tangent_scale' parameter"):
        search(tangent_scales=(1.0, "auto")).fit(X, y)
    with pytest.raises(ValueError, match="Expected cv to learn all 60 rows"):
        search(cv=ShuffleSplit(2, test_size=0.3, train_size=0.3)).fit(X, y)
    with pytest.raises(ValueError, match="'scoring' parameter"):
        search(scoring=["accuracy"]).fit(X, y)
    needed = search().fit(X, y).can_unlearn(X[:1])["n_bytes"]
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    FastNTKClassifier(random_state=0).fit(X, y)
    with pytest.raises(InsufficientMemoryError, match="60 rows"):
        search().fit(X, y)


def test_what_has_no_score_ranks_last(blobs):
    X, y = blobs
    scored = iter([np.nan, 0.5, 0.7] * 3)
    clf = search(
        n_components=16,
        alphas=(0.1, 0.2, 0.3),
        tangent_scales=1.0,
        cv=3,
        scoring=lambda estimator, X, y: next(scored),
    )
    with pytest.warns(UserWarning, match="1 candidates are NaN"):
        clf.fit(X, y)
    assert clf.cv_results_["rank_test_score"].tolist() == [3, 2, 1]
    assert clf.best_params_ == {"alpha": 0.3, "tangent_scale": 1.0}


def test_a_row_that_is_too_heavy_for_the_best_ridge_is_refused(blobs):
    X, y = blobs
    with pytest.raises(HeavyRowError):
        search(alphas=(0.3,)).fit(X, y, sample_weight=np.r_[1e8, np.ones(59)])


@pytest.mark.parametrize("alphas", [(0.01, 0.3), np.array([0.01, 0.3])], ids=["tuple", "array"])
def test_it_is_saved_and_published(blobs, tmp_path, alphas):
    X, y = blobs
    clf = search(alphas=alphas, trainable="norm", n_components=50, cv=KFold(3)).fit(X, y)
    with pytest.warns(UnsavedParameterWarning, match="cv"):
        clf.save(tmp_path / "state")
    with pytest.warns(UnsavedParameterWarning, match="cv"):
        clf.save_pretrained(tmp_path / "adapter")
    loaded = FastNTKClassifierCV.load(tmp_path / "state")
    pulled = FastNTKClassifierCV.from_pretrained(tmp_path / "adapter")
    for other in (loaded, pulled):
        np.testing.assert_array_equal(other.decision_function(X), clf.decision_function(X))
    assert [*loaded.alphas] == [0.01, 0.3]
    assert not loaded.unlearn(X[:3]).receipts_[-1]["exactness"]["exact"]


def test_a_merge_keeps_that_a_search_has_seen_rows(blobs):
    X, y = blobs
    settings = {"trainable": "norm", "n_components": 50}
    found = search(alphas=(0.3,), tangent_scales=(1.0,), **settings).fit(X[:30], y[:30])
    plain = FastNTKClassifier(alpha=0.3, random_state=0, **settings).fit(X[30:], y[30:])
    with pytest.warns(PrivacyWarning):
        plain.merge(found)
    assert not plain.unlearn(X[40:42]).receipts_[-1]["exactness"]["exact"]
