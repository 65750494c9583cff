import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from cases import gap
from sklearn import config_context
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastntk_sk import FastNTKClassifier, unlearn
from fastntk_sk.exceptions import (
    EmptyClassWarning,
    HeavyRowError,
    InexactDeletionError,
    InexactDeletionWarning,
    NumericalDriftWarning,
    PrivacyWarning,
    StateMismatchError,
    UnknownSampleError,
)

EXPECTED_FAILURES: dict[str, dict[str, str]] = {
    "pretrained": {},
    "finetuned": {"check_n_features_in_after_fitting": "partial_fit adds to a fit, SGD cannot start it"},
}


@parametrize_with_checks(
    [
        FastNTKClassifier(random_state=0),
        FastNTKClassifier(anchor="finetuned", max_epochs=8, n_components=50, random_state=0),
    ],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES[estimator.anchor],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def small(**changes):
    return FastNTKClassifier(**({"random_state": 0, "n_components": 64, "batch_size": 16} | changes))


def tiny_cnn(**changes):
    settings = {"image_size": 32, "pretrained": False, "random_state": 0, "batch_size": 8}
    return FastNTKClassifier("test_resnet", n_components=128, **(settings | changes))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_unlearn_equals_a_refit_on_images(digits, precision):
    X, y = digits[0][:60], digits[1][:60]
    clf = tiny_cnn(precision=precision).fit(X, y).unlearn(X[:12])
    refit = tiny_cnn(precision=precision).partial_fit(X[12:], y[12:], classes=clf.classes_)
    # float32 parameters are rounded from float64 ones that agree
    assert gap(clf, refit) < {"float32": 1e-7, "float64": 1e-10}[precision]
    assert clf.receipts_[0]["exactness"] == {"exact": True, "reasons": []}
    assert clf.receipts_[0]["residual"] < 1e-10
    assert (clf.n_samples_learned_, clf.n_samples_forgotten_) == (48, 12)


@pytest.mark.parametrize("trainable", ["norm", "bias", "head", "full", ["norm", "1.weight"]])
def test_network_and_linear_prediction_agree_for_small_displacements(blobs, trainable):
    X, y = blobs
    linear = small(trainable=trainable, target_scale=1e-4).fit(X, y)
    network = small(trainable=trainable, target_scale=1e-4, predict_with="network").fit(X, y)
    np.testing.assert_allclose(
        network.decision_function(X) * 1e4, linear.decision_function(X) * 1e4, atol=2e-3
    )


@pytest.mark.parametrize("trainable", ["prompt", "prompt-deep", "norm", "head"])
def test_vision_transformer_forgets(digits, trainable):
    X, y = digits[0][:24], digits[1][:24] % 2

    def make():
        def factory():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)

        return FastNTKClassifier(
            factory, trainable=trainable, image_size=32, random_state=0, batch_size=8, n_prompts=3
        )

    clf, refit = make().fit(X, y).unlearn(X[:5]), make().fit(X[5:], y[5:])
    assert gap(clf, refit) < 1e-7


def test_a_module_is_copied_and_never_changed(digits):
    X, y = digits[0][:20], digits[1][:20] % 2
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(inplace=True),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    )  # fmt: skip
    before = copy.deepcopy(net.state_dict())
    clf = FastNTKClassifier(net, image_size=8, random_state=0).fit(X, y)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    refit = FastNTKClassifier(net, image_size=8, random_state=0).fit(X[4:], y[4:])
    assert gap(clf.unlearn(X[:4]), refit) < 1e-7


def test_image_kinds_are_one(digits, tmp_path):
    from PIL import Image

    X, y = digits[0][:30], digits[1][:30]
    pictures = [Image.fromarray(x) for x in X]
    paths = []
    for i, picture in enumerate(pictures):
        paths.append(tmp_path / f"{i}.png")
        picture.save(paths[-1])
    clf = tiny_cnn().fit(X, y)
    expected = clf.decision_function(X)
    kinds = (
        pictures, paths, [str(p) for p in paths], np.array([str(p) for p in paths], dtype=object),
        pd.Series(map(str, paths)), pd.DataFrame({"file": map(str, paths)}),
        np.repeat(X[..., None], 3, axis=3), X[..., None], list(X),
    )  # fmt: skip
    for kind in kinds:
        np.testing.assert_array_equal(clf.decision_function(kind), expected)
    np.testing.assert_allclose(clf.decision_function(X / 255), expected, rtol=0.05, atol=0.05)
    clf.unlearn(paths[:3])  # learned as an array, forgotten as files: the content is the same
    assert clf.n_samples_learned_ == 27


def test_partial_fit_adds_exactly_and_merge_sums(blobs):
    X, y = blobs
    whole = small().fit(X, y)
    parts = small().partial_fit(X[:20], y[:20], classes=[0, 1, 2]).partial_fit(X[20:], y[20:])
    assert gap(parts, whole) < 1e-11
    first = small().partial_fit(X[:30], y[:30], classes=[0, 1, 2])
    second = small().partial_fit(X[30:], y[30:], classes=[0, 1, 2])
    with pytest.warns(PrivacyWarning, match="30 rows"):
        first.merge(second)
    assert gap(first, whole) < 1e-11
    assert second.n_samples_learned_ == 30
    first.unlearn(X[[0, 40]])  # each part keeps its own key
    second.unlearn(X[[40]])
    assert gap(first, small().fit(*(np.delete(a, [0, 40], axis=0) for a in (X, y)))) < 1e-10


def test_merge_refuses_other_set_ups(blobs):
    X, y = blobs
    frame = pd.DataFrame(X, columns=list("abcd"))
    clf = small().fit(frame, y)
    assert clf.feature_names_in_.tolist() == list("abcd")
    with pytest.raises(StateMismatchError, match="random_state"):
        clf.merge(small(random_state=1).fit(X, y))
    with pytest.raises(StateMismatchError, match="classes"):
        clf.merge(small().fit(X[y < 2], y[y < 2]))
    with pytest.raises(StateMismatchError, match="columns"):
        clf.merge(small().fit(frame[list("dcba")], y))
    assert clf.n_samples_learned_ == 60
    assert clf.unlearn(frame.iloc[:5]).n_samples_learned_ == 55


def test_merge_refuses_copies_of_one_fit(blobs, tmp_path):
    """Their common rows would count twice, and their receipts would fork."""
    X, y = blobs
    clf = small().fit(X[:40], y[:40])
    clf.save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalDriftWarning)
        one = FastNTKClassifier.load(tmp_path / "model").unlearn(X[:1])
        two = FastNTKClassifier.load(tmp_path / "model").partial_fit(X[40:], y[40:])
    for first, second in ((one, two), (clf, copy.deepcopy(clf))):
        with pytest.raises(StateMismatchError, match="learned apart, got copies of one fit"):
            first.merge(second)


def test_weights_and_duplicates(blobs):
    X, y = blobs
    twice = small().fit(np.vstack([X, X[:10]]), np.concatenate([y, y[:10]]))
    weighted = small().fit(X, y, sample_weight=np.r_[np.full(10, 2.0), np.ones(50)])
    assert gap(twice, weighted) < 1e-11
    with pytest.warns(PrivacyWarning, match="ids: 10"):
        twice.unlearn(X[:10])
    assert gap(twice, small().fit(X, y)) < 1e-11
    assert gap(weighted.unlearn(X[:10]), small().fit(X[10:], y[10:])) < 1e-11
    dropped = small().fit(X, y, sample_weight=np.r_[np.zeros(10), np.ones(50)])
    assert gap(dropped, small().fit(X[10:], y[10:])) < 1e-12
    assert dropped.n_samples_learned_ == 50


def test_string_labels_and_a_class_that_is_forgotten(blobs):
    X, y = blobs
    names = np.array(["ankle boot", "bag", "coat"])[y]
    clf = small().fit(X, names)
    with pytest.warns(EmptyClassWarning, match=r"\['bag'\].* still in classes_"):
        clf.unlearn(X[names == "bag"], names[names == "bag"])
    assert "bag" in clf.classes_
    assert "bag" not in clf.predict(X)
    assert not clf.predict_proba(X)[:, 1].any()
    np.testing.assert_allclose(clf.predict_proba(X).sum(axis=1), 1)
    clf.partial_fit(X[names == "bag"], names[names == "bag"])
    assert gap(clf, small().fit(X, names)) < 1e-10


def test_predict_proba_of_an_exact_fit_is_99_percent():
    X = 30 * np.eye(3)
    clf = FastNTKClassifier(torch.nn.Identity(), trainable="head", alpha=1e-3, random_state=0)
    probabilities = clf.fit(X, np.arange(3)).predict_proba(X)
    np.testing.assert_allclose(np.diag(probabilities), 0.99, rtol=1e-4)


def test_parameters_are_fixed_at_fit(blobs):
    X, y = blobs
    clf = small().fit(X, y)
    clf.set_params(alpha=100.0, tangent_scale=0.0, batch_size=3, trainable="head", precision="float32")
    with pytest.warns(UserWarning, match="alpha.*next fit"):
        clf.unlearn(X[:5])
    assert gap(clf, small().fit(X[5:], y[5:])) < 1e-11
    with pytest.warns(UserWarning, match="alpha.*next fit") as caught:
        clf.partial_fit(X[:5], y[:5])
    assert caught[0].filename == __file__
    clf.fit(X, y).unlearn(X[:5])


def test_copies_and_sample_ids(blobs):
    X, y = blobs
    ids = [f"person {i // 6}" for i in range(60)]
    clf = small().fit(np.vstack([X, X[:2]]), np.r_[y, y[:2]], sample_ids=[*ids, "x", "x"])
    assert not clf.can_unlearn(X[:1])["possible"]
    with pytest.warns(PrivacyWarning, match=r"ids: 1\."):
        clf.unlearn(X[:1], sample_ids=["x"])
    assert clf.receipts_[-1]["n_rows_left_under_sample_ids"] == 1
    clf.unlearn(X[:6], copies="all")
    assert clf.n_samples_learned_ == 62 - 1 - 6 - 1


def test_can_unlearn_is_a_dry_run(blobs):
    X, _ = blobs
    clf = small().fit(*blobs)
    report = clf.can_unlearn(X[:7])
    assert report["possible"]
    assert report["n_rows"] == 7
    assert report["n_bytes"] > 0
    assert report["seconds"] > 0
    report = clf.can_unlearn(np.vstack([X[:1], X[:1] + 1]))
    assert not report["possible"]
    assert report["indices"] == [1]
    assert "learned rows" in clf.can_unlearn(X)["reason"]
    assert clf.n_samples_learned_ == 60


class Changing(torch.nn.Module):
    """Features that can change after fit, as those of another version or machine would."""

    def __init__(self):
        super().__init__()
        self.state = {"factor": 1.0, "place": 0.0, "others": 0.0}

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        self.state.pop("meanwhile", lambda: None)()
        places = torch.arange(len(x), dtype=x.dtype)[:, None]
        h = torch.tanh(x) * (self.state["factor"] + self.state["place"] * places)
        return h - self.state["others"] * h.mean(0)


def changing(**changes):
    net = Changing()
    return net.state, small(backbone=net, trainable="head", backbone_has_seen=False, **changes)


def test_rebuild_and_drift(blobs):
    X, y = blobs
    state, clf = changing()
    clf.fit(X, y).unlearn(X[:5])
    assert clf.receipts_[-1]["exactness"]["exact"]
    state["factor"] = 1 + 1e-6
    assert not clf.can_unlearn(X[6:7])["exactness"]["exact"]
    with pytest.warns(NumericalDriftWarning, match="differs"):
        clf.unlearn(X[5:6])
    assert not clf.receipts_[-1]["exactness"]["exact"]
    assert clf.receipts_[-1]["drift"] == pytest.approx(1e-6, rel=0.1)
    with pytest.warns(NumericalDriftWarning), pytest.raises(InexactDeletionError, match="Nothing"):
        unlearn(clf, X[6:7], strict=True)
    with pytest.raises(StateMismatchError, match="54 rows that are learned, got 53"):
        clf.rebuild(X[7:])
    order = np.random.default_rng(0).permutation(np.arange(6, 60))
    clf.rebuild(X[order], y[order])
    clf.unlearn(X[6:8])
    assert clf.receipts_[-1]["exactness"]["exact"]
    refit = clone(clf).fit(X[8:], y[8:])
    np.testing.assert_allclose(clf.decision_function(X), refit.decision_function(X), rtol=1e-5)
    assert len(clf.receipts_) == 3


@pytest.mark.parametrize(
    ("changes", "weight_left", "reason"),
    [
        ({"place": 1e-6}, 1.0, "depends on the other rows"),
        ({"others": 1e-4}, 1.0, "depends on the other rows"),
        ({}, 1e-12, "rounding"),  # next to nothing is left
        ({}, 2e6, "rounding"),  # each row is light enough, not all of them together
    ],
)
def test_what_a_deletion_measures_forbids_exactness(blobs, changes, weight_left, reason):
    X, y = blobs
    state, clf = changing(alpha=0.1)
    state |= changes
    weights = np.r_[np.ones(30), np.full(30, weight_left)]
    clf.fit(X, y, sample_weight=weights).unlearn(X[:30])
    exactness = clf.receipts_[-1]["exactness"]
    assert not exactness["exact"]
    assert reason in " ".join(exactness["reasons"])


@pytest.mark.parametrize("has_seen", [True, np.True_, "unknown", "auto"])
def test_a_backbone_that_may_have_seen_the_rows_is_said(blobs, has_seen):
    X, y = blobs
    _, clf = changing()
    clf.set_params(backbone_has_seen=has_seen)
    assert not clf.fit(X, y).can_unlearn(X[:1])["exactness"]["exact"]
    assert "backbone" in " ".join(clf.unlearn(X[:1]).receipts_[-1]["exactness"]["reasons"])
    with pytest.raises(InexactDeletionError, match="backbone"):
        unlearn(clf, X[1:2], strict=True)


def test_a_heavy_row_is_refused(blobs):
    X, y = blobs
    X = np.r_[X, [[3e7, 0, 0, 0]]]
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    clf = small(backbone=net, trainable="head", alpha=0.1)
    for weights in (None, np.r_[np.zeros(10), np.ones(51)]):
        with pytest.raises(HeavyRowError, match="row 60") as raised:
            clf.fit(X, np.r_[y, 0], sample_weight=weights)
        assert raised.value.indices == [60]
    assert not hasattr(clf, "classes_")
    with pytest.raises(HeavyRowError, match="row 0"):
        clf.fit(X[:60], y).partial_fit(X[60:], [0])
    assert clf.n_samples_learned_ == 60


def test_global_seeds_are_not_touched_and_none_differs(blobs, digits):
    X, y = digits[0][:10], digits[1][:10]

    def factory():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4), torch.nn.LayerNorm(4))

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    tiny_cnn().fit(X, y)
    seeded = [FastNTKClassifier(factory, image_size=8, random_state=0).fit(X, y) for _ in range(2)]
    drawn = [small(random_state=None, trainable="norm").fit(*blobs) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert gap(*seeded) == 0
    assert gap(*drawn) > 1e-3


def test_a_commit_of_another_thread_is_not_lost(blobs):
    X, y = blobs
    state, clf = changing()
    clf.fit(X, y)
    for call in (lambda: clf.unlearn(X[:1]), lambda: clf.partial_fit(X[:1], y[:1])):
        before = clf.n_samples_learned_
        state["meanwhile"] = lambda: clf.unlearn(X[1:2])
        with pytest.raises(StateMismatchError, match="Another thread"):
            call()
        assert clf.n_samples_learned_ == before - 1
        clf.partial_fit(X[1:2], y[1:2])
    assert clf.unlearn(X[:1]).n_samples_learned_ == len(X) - 1
    assert len(clf.receipts_) == 3


def test_progress(blobs, capsys):
    X, y = blobs
    clf = small().fit(X, y)
    clf.unlearn(X[:4]).predict(X)
    assert capsys.readouterr() == ("", "")
    clf.set_params(verbose=1).unlearn(X[4:8])
    assert "forgetting" in capsys.readouterr().err


def test_fitted_arrays_are_copies(blobs):
    X, y = blobs
    clf = small(trainable="norm").fit(X, y)
    expected = clf.decision_function(X)
    clf.readout_[:] = 0
    clf.displacement_[:] = 0
    np.testing.assert_array_equal(clf.decision_function(X), expected)


def test_the_autocast_of_the_caller_changes_nothing(digits):
    X, y = digits[0][:24], digits[1][:24] % 2
    plain = tiny_cnn(trainable="norm").fit(X, y)
    with torch.autocast("cpu", torch.bfloat16):
        within = tiny_cnn(trainable="norm").fit(X, y)
        scores = plain.decision_function(X)
    np.testing.assert_array_equal(within.readout_, plain.readout_)
    np.testing.assert_array_equal(scores, plain.decision_function(X))


def test_pipelines_searches_and_copies(blobs):
    X, y = blobs
    grid = {"alpha": [0.1, 1.0], "trainable": ["norm", "head"], "tangent_scale": [0.5, 1.0]}
    search = GridSearchCV(small(), grid, cv=2).fit(X, y)
    assert search.best_score_ > 0.6
    assert cross_val_score(small(), X, y, cv=3).mean() > 0.6
    clf = small().fit(X, y)
    expected = clf.decision_function(X)
    for other in (copy.deepcopy(clf), pickle.loads(pickle.dumps(clf))):
        np.testing.assert_array_equal(other.decision_function(X), expected)
        other.unlearn(X[:3])
    assert clf.n_samples_learned_ == 60
    assert not hasattr(clone(clf), "classes_")
    image_search = GridSearchCV(small(), {"alpha": [0.1]}, cv=2)
    unlearn(image_search.fit(X, y), X[:2])
    receipt = image_search.best_estimator_.receipts_[-1]
    assert receipt["searched_by"] == ["GridSearchCV"]
    assert not receipt["exactness"]["exact"]


def test_unlearn_in_a_pipeline(blobs):
    X, y = blobs
    exact = make_pipeline(FunctionTransformer(np.tanh), "passthrough", small()).fit(X, y)
    assert gap(unlearn(exact, X[:4])[-1], small().fit(np.tanh(X[4:]), y[4:])) < 1e-11
    reduced = make_pipeline(PCA(2), small()).fit(
        X, y
    )  # transform differs from fit_transform in the last bits
    with pytest.warns(InexactDeletionWarning, match="PCA"):
        unlearn(reduced, X[:7])
    scaled = make_pipeline(StandardScaler(), small()).fit(X, y)
    with pytest.raises(InexactDeletionError, match="standardscaler"):
        unlearn(scaled, X[:4], strict=True)
    assert scaled[-1].n_samples_learned_ == 60
    with pytest.warns(InexactDeletionWarning, match="StandardScaler") as caught:
        unlearn(scaled, X[:4])
    assert caught[0].filename == __file__
    assert not scaled[-1].receipts_[0]["exactness"]["exact"]
    with pytest.raises(TypeError, match="got StandardScaler"):
        unlearn(StandardScaler().fit(X), X)


def test_metadata_routing(blobs):
    X, y = blobs
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(small().set_fit_request(sample_weight=True, sample_ids=True))
        weights = np.r_[np.full(10, 2.0), np.ones(50)]
        pipeline.fit(X, y, sample_weight=weights, sample_ids=np.arange(60))
    assert gap(pipeline[-1], small().fit(X, y, sample_weight=weights)) < 1e-12
    pipeline[-1].unlearn(X[3:4], sample_ids=[3])
    assert pipeline[-1].receipts_[-1]["n_rows_left_under_sample_ids"] == 0


def test_html_shows_the_state(blobs):
    X, y = blobs
    clf = small()
    assert "learned" not in clf._repr_html_()
    page = clf.fit(X, y).unlearn(X[:4])._repr_html_()
    assert "56 rows" in page
    assert "exact" in page


def test_merging_places_whose_jacobians_differ_is_remembered(blobs):
    X, y = blobs
    state, first = changing()
    first.partial_fit(X[:30], y[:30], classes=[0, 1, 2])
    state["factor"] = 1 + 1e-5
    second = clone(first).partial_fit(X[30:], y[30:], classes=[0, 1, 2])
    state["factor"] = 1.0
    first.merge(second)
    with pytest.warns(NumericalDriftWarning):
        first.unlearn(X[40:41])
    assert not first.receipts_[-1]["exactness"]["exact"]


def test_the_number_of_threads_is_that_of_the_fit(blobs):
    X, y = blobs
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        clf = small().fit(X, y)
        torch.set_num_threads(1)
        clf.unlearn(X[:5])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert clf.receipts_[-1]["threads"] == 2
    assert clf.receipts_[-1]["exactness"]["exact"]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_sample_id_names_nobody(blobs, missing):
    X, y = blobs
    ids = np.array(["a", missing, missing, *range(len(X) - 3)], dtype=object)
    clf = FastNTKClassifier(random_state=0).fit(X, y, sample_ids=ids)
    with pytest.raises(UnknownSampleError):
        clf.unlearn(X[1:2], sample_ids=["nan"])
    assert clf.unlearn(X[:1], sample_ids=["a"]).unlearn(X[1:2]).n_samples_forgotten_ == 2
