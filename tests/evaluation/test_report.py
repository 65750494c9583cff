import pickle
import sys
from copy import deepcopy

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from fastntk_sk import FastNTKClassifier
from fastntk_sk.evaluation import (
    MissingOracleError,
    NoNoiseFloorWarning,
    UnlearningDisplay,
    activation_distance,
    make_forget_scorer,
    population_mia_auc,
    tug_of_war,
    unlearning_report,
)

X, Y = load_iris(return_X_y=True)
NOISY = np.where(np.arange(150) % 5 == 0, (Y + 1) % 3, Y)
FORGET, RETAIN, TEST = ((X[i::5], NOISY[i::5]) for i in range(3))
SETS = {"retain": RETAIN, "forget": FORGET, "test": TEST}
GAPS = ["tow", "activation_distance_forget", "activation_distance_test"]


@pytest.fixture(scope="module")
def models():
    original = FastNTKClassifier(random_state=0, alpha=0.01).fit(*RETAIN).partial_fit(*FORGET)
    return {
        "unlearned": deepcopy(original).unlearn(*FORGET),
        "original": original,
        "oracle": FastNTKClassifier(random_state=0, alpha=0.01).fit(*RETAIN),
        "second_oracle": FastNTKClassifier(random_state=1, alpha=0.01).fit(*RETAIN),
    }


def three(models):
    return {name: models[name] for name in ("original", "oracle", "second_oracle")}


def test_report_holds_what_the_metrics_say(models, monkeypatch):
    seen, whole = [], FastNTKClassifier.predict_proba
    monkeypatch.setattr(
        FastNTKClassifier, "predict_proba", lambda self, X: seen.append(len(X)) or whole(self, X)
    )
    report = unlearning_report(
        {"ours": models["unlearned"], "nothing": deepcopy(models["original"])},
        **three(models),
        **SETS,
    )
    assert len(seen) == 5 * 3  # each model sees each set once
    rows = ["original", "ours", "nothing", "oracle", "second oracle (noise floor)"]
    assert report.index.tolist() == rows
    oracle = models["oracle"]
    for name, model in (("original", models["original"]), ("ours", models["unlearned"])):
        row = report.loc[name]
        assert row["tow"] == pytest.approx(tug_of_war(model, oracle, **SETS))
        assert row["mia_auc"] == pytest.approx(population_mia_auc(model, FORGET, TEST))
        for of in ("forget", "test"):
            expected = activation_distance(model, oracle, SETS[of][0])
            assert row[f"activation_distance_{of}"] == pytest.approx(expected)
        for of, dataset in SETS.items():
            assert row[f"accuracy_{of}"] == pytest.approx(model.score(*dataset))
    assert report.loc["original"].equals(report.loc["nothing"])
    # exact deletion: the oracle's predictions; and what is compared with itself is not a number
    assert report.loc["ours", "tow"] == 1
    assert report.loc["ours", "activation_distance_test"] < 1e-9
    assert report.loc["original", "activation_distance_forget"] > 1e-2
    assert report.columns[report.loc["oracle"].isna()].tolist() == GAPS
    assert report.loc[rows[-1], "activation_distance_test"] > 1e-6


def test_report_of_other_estimators_and_without_a_noise_floor():
    original, oracle = (GaussianNB(var_smoothing=v).fit(*RETAIN) for v in (1, 1e-9))
    with pytest.warns(NoNoiseFloorWarning, match="second oracle"):
        report = unlearning_report(deepcopy(oracle), original=original, oracle=oracle, **SETS)
    assert report.index.tolist() == ["original", "unlearned", "oracle"]
    assert report.loc["unlearned", "tow"] == 1


def test_report_refuses(models):
    unlearned, some = models["unlearned"], three(models)
    with pytest.raises(MissingOracleError):
        unlearning_report(unlearned, **(some | {"oracle": None}), **SETS)
    for name in ("original", "second_oracle"):
        with pytest.raises(ValueError, match="same object"):
            unlearning_report(unlearned, **(some | {name: models["oracle"]}), **SETS)
        with pytest.raises(NotFittedError):
            unlearning_report(unlearned, **(some | {name: FastNTKClassifier()}), **SETS)
    with pytest.raises(ValueError, match="in place"):
        unlearning_report(some["original"], **some, **SETS)
    for bad in ({}, {"oracle": unlearned}, {"original": unlearned}):
        with pytest.raises(ValueError, match="of names other than"):
            unlearning_report(bad, **some, **SETS)
    with pytest.raises(ValueError, match="row in test"):
        unlearning_report(unlearned, **some, **(SETS | {"test": (X[:0], Y[:0])}))


def test_missing_packages_say_how_to_install_them(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="requires pandas"):
        unlearning_report(models["unlearned"], **three(models), **SETS)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="requires matplotlib"):
        UnlearningDisplay({}, {}).plot()


def test_scorer_in_a_search_equals_refits():
    forget, folds = np.arange(0, 150, 5), StratifiedKFold(3, shuffle=True, random_state=0)
    clf = FastNTKClassifier(random_state=0)
    search = GridSearchCV(
        clf,
        {"alpha": [0.01, 100.0]},
        scoring=make_forget_scorer(X[forget], NOISY[forget], target=0.1, weight=2.5),
        cv=folds,
    ).fit(X, NOISY)
    for i, alpha in enumerate([0.01, 100.0]):
        for fold, (train, test) in enumerate(folds.split(X, NOISY)):
            kept, learned = np.setdiff1d(train, forget), np.intersect1d(train, forget)
            refit = clone(clf).set_params(alpha=alpha).fit(X[kept], NOISY[kept])
            missed = abs(refit.score(X[learned], NOISY[learned]) - 0.1)
            expected = refit.score(X[test], NOISY[test]) - 2.5 * missed
            assert search.cv_results_[f"split{fold}_test_score"][i] == pytest.approx(expected)


def test_scorer_leaves_the_model_alone_and_takes_pipelines(models):
    scorer = make_forget_scorer(*FORGET)
    original = models["original"]
    before = original.readout_.copy()
    expected = scorer(original, *TEST)
    assert original.n_samples_forgotten_ == 0
    np.testing.assert_array_equal(original.readout_, before)
    pipeline = make_pipeline(FunctionTransformer(), original)
    assert scorer(pipeline, *TEST) == expected
    assert original.n_samples_forgotten_ == 0
    assert pickle.loads(pickle.dumps(scorer))(original, *TEST) == expected
    unlearned = models["unlearned"]
    accuracy = unlearned.score(*TEST)
    assert expected == pytest.approx(accuracy - abs(unlearned.score(*FORGET) - accuracy))


def test_scorer_errors(models):
    with pytest.raises(ValueError, match="got none"):
        make_forget_scorer(X[:3] + 9, Y[:3])(models["original"], *TEST)
    for bad in ({"target": 2}, {"target": "test"}, {"weight": -1}, {"weight": np.inf}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            make_forget_scorer(*FORGET, **bad)
    with pytest.raises(ValueError, match="at least one row"):
        make_forget_scorer(X[:0], Y[:0])


def test_an_oracle_that_has_seen_the_rows_is_refused(blobs):
    X, y = blobs
    forget, retain = (X[:6], y[:6]), (X[6:], y[6:])
    original = FastNTKClassifier(random_state=0).fit(X, y)
    impostor = FastNTKClassifier(random_state=1).fit(X, y)
    honest = FastNTKClassifier(random_state=0).fit(*retain)
    sets = {"retain": retain, "forget": forget, "test": retain}
    unlearned = deepcopy(original).unlearn(*forget)
    nearly = FastNTKClassifier(random_state=1).fit(X[1:], y[1:])
    for oracle, second, n in ((impostor, honest, 6), (honest, impostor, 6), (nearly, honest, 5)):
        with pytest.raises(ValueError, match=f"{n} of the forget set"):
            unlearning_report(unlearned, original=original, oracle=oracle, second_oracle=second, **sets)
    sets["retain"] = np.vstack([X[6:], X[:1]]), np.append(y[6:], y[0])  # a person kept the same picture
    allowed = FastNTKClassifier(random_state=0).fit(*sets["retain"])
    report = unlearning_report(
        unlearned, original=original, oracle=allowed, second_oracle=honest, **sets
    )
    assert np.isfinite(report.loc["unlearned", "tow"])
