"""What keep="features" adds: deletion by name, searches, and sums made anew without data."""

import unicodedata

import numpy as np
import pytest
import torch
from cases import gap

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV
from fastntk_sk.exceptions import (
    NoFeaturesError,
    NumericalDriftWarning,
    PrivacyWarning,
    UnknownSampleError,
)

NAMES = [f"person {i % 12}" for i in range(60)]
OF_3 = np.array([name == "person 3" for name in NAMES])


def make(**changes):
    return FastNTKClassifier(**({"random_state": 0, "keep": "features"} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainable": "head"},
        {"trainable": "norm", "kernel": "pseudo", "n_components": 8},
        {"precision": "float32", "alpha": 0.1},
    ],
)
def test_forget_by_name(blobs, tmp_path, changes):
    X, y = blobs
    weights = np.linspace(0.5, 2, 60)
    clf = make(**changes).fit(X, y, weights, NAMES)
    plain = make(**changes | {"keep": None}).fit(X, y, weights, NAMES)
    assert gap(clf, plain) == 0
    clf.save(tmp_path / "model")
    loaded = FastNTKClassifier.load(tmp_path / "model")
    refit = make(**changes).fit(X[~OF_3], y[~OF_3], weights[~OF_3])
    for model in (clf, loaded):
        assert model.can_unlearn(sample_ids=["person 3"])["n_rows"] == 5
        model.unlearn(sample_ids=["person 3"])
        assert gap(model, refit) < 1e-10
        receipt = model.receipts_[-1]
        assert (receipt["n_rows"], receipt["kept_features"]) == (5, True)
        assert receipt["exactness"] == {"exact": True, "reasons": []}
        with pytest.raises(UnknownSampleError, match="sample ids") as caught:
            model.unlearn(sample_ids=["person 4", "person 3"])
        assert caught.value.indices == [1]
    # with the picture too, the features that were kept are subtracted
    row = NAMES.index("person 4")
    loaded.unlearn(X[row : row + 1])
    assert loaded.receipts_[-1]["kept_features"]
    loaded.rebuild()
    left = ~OF_3 & (np.arange(60) != row)
    assert gap(loaded, make(**changes).fit(X[left], y[left], weights[left])) < 1e-10


def test_nothing_of_the_forgotten_stays(blobs, tmp_path):
    X, y = blobs
    path = tmp_path / "model"
    clf = make().fit(X, y, sample_ids=NAMES)
    clf.save(path)
    before = path.read_bytes()
    gone, stays = (features(clf, X[[NAMES.index(name)]]) for name in ("person 3", "person 4"))
    assert parts(gone, before) > 0.9  # pages of the file divide a row
    clf.unlearn(sample_ids=["person 3"]).save(path)
    after = path.read_bytes()
    assert parts(stays, after) > 0.9
    assert parts(gone, after) == 0
    assert b"person 4" in after
    assert b"person 3" not in after
    assert clf.find(X[OF_3][:1], threshold=0.999) == [[]]


@pytest.mark.parametrize("wrong", [{"threshold": float("nan")}, {"threshold": 1.5}, {"n": 0}])
def test_find_refuses_what_nothing_can_be(blobs, wrong):
    X, y = blobs
    clf = make().fit(X, y)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        clf.find(X[:1], **wrong)


def features(clf, X):
    """Return the features of one row, as they enter the sums."""
    model = clf._private.state.model
    ((found, _),) = model.all_tangents(clf._rows(X))
    return found.numpy()[0]


def parts(row, content):
    """Return the share of pairs of a row's numbers, none of them zero, whose bytes a file holds."""
    pairs = [pair.tobytes() for pair in row[: len(row) // 2 * 2].reshape(-1, 2) if pair.all()]
    return np.mean([pair in content for pair in pairs[:200]])


def test_a_row_that_is_left_keeps_its_name(blobs):
    """The id goes with its last row, and a content with its last copy."""
    X, y = blobs
    clf = make().fit(np.r_[X, X[:1]], np.r_[y, y[:1]], sample_ids=[*NAMES, "person 0"])
    with pytest.warns(PrivacyWarning, match=r"ids: 1\."):
        clf.unlearn(X[:1])
    ((found,),) = clf.find(X[:1], n=1)
    assert (found["sample_id"], found["n_copies"], found["same"]) == ("person 0", 1, True)
    assert found["label"] == y[0]
    clf.unlearn(sample_ids=["person 0"])
    assert clf.n_samples_learned_ == 55


def test_find_names_a_picture_that_was_encoded_again(digits):
    X, y = digits[0][:40], digits[1][:40]
    clf = make(backbone="test_resnet", image_size=32, pretrained=False, n_components=64)
    clf.fit(X, y, sample_ids=[f"digit {i}" for i in range(40)])
    again = np.clip(X[:5].astype(int) + np.random.default_rng(0).integers(-3, 4, X[:5].shape), 0, 255)
    found = clf.find(again.astype(np.uint8), n=2, threshold=0.95)
    assert [rows[0]["sample_id"] for rows in found] == [f"digit {i}" for i in range(5)]
    assert not any(row["same"] for rows in found for row in rows)
    assert all(len(rows) <= 2 for rows in found)


@pytest.mark.filterwarnings("error")
def test_kept_features_survive_another_backbone_numerically(digits, tmp_path):
    """As after an upgrade of torch: what is subtracted is what was learned."""
    X, y = digits[0][:40], digits[1][:40]
    names = [f"digit {i}" for i in range(40)]
    clf = make(backbone="test_resnet", image_size=32, pretrained=False, n_components=64)
    clf.fit(X, y, sample_ids=names)
    refit = make(backbone="test_resnet", image_size=32, pretrained=False, n_components=64)
    refit.fit(X[1:], y[1:], sample_ids=names[1:], classes=clf.classes_)
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        clf.unlearn(sample_ids=["digit 0"])
        clf.unlearn(X[1:2])
        clf.rebuild()
    assert [receipt["exactness"]["exact"] for receipt in clf.receipts_] == [True, True]
    refit.unlearn(sample_ids=["digit 1"])
    assert gap(clf, refit) < 1e-10


class Changing(torch.nn.Module):
    """Features that another version of a library would give otherwise."""

    factor = 1.0

    def forward(self, x):
        return torch.tanh(x) * type(self).factor


def test_features_are_those_that_entered_the_sums(blobs, tmp_path, monkeypatch):
    """Also where the backbone gives others when rows are learned again, or the sums made anew."""
    X, y = blobs
    new = {"backbone": Changing, "trainable": "head", "backbone_has_seen": False, "alpha": 0.1}
    clf = make(**new).fit(X, y, sample_ids=NAMES)
    path = tmp_path / "state"
    clf.save(path)
    without = make(**new).fit(X[~OF_3], y[~OF_3])
    monkeypatch.setattr(Changing, "factor", 1.01)
    with pytest.warns(NumericalDriftWarning):
        clf.partial_fit(X[OF_3], y[OF_3], sample_ids=["person 3"] * 5)
    assert clf.unlearn(sample_ids=["person 3"]).n_samples_learned_ == 55
    assert gap(clf, without) < 1e-6
    clf.rebuild(X[~OF_3])
    clf.save(path)
    loaded = FastNTKClassifier.load(path, backbone=Changing)
    of_4 = np.array([name == "person 4" for name in NAMES])
    refit = make(**new).fit(X[~OF_3 & ~of_4], y[~OF_3 & ~of_4])
    for model in (clf, loaded):
        model.unlearn(sample_ids=["person 4"])
        assert model.receipts_[-1]["kept_features"]
        assert gap(model, refit) < 1e-6


def test_sites_that_keep_and_that_do_not(blobs):
    X, y = blobs
    with pytest.warns(PrivacyWarning, match="inverted"):
        both = (
            make()
            .fit(X[:30], y[:30], sample_ids=NAMES[:30])
            .merge(make(keep=None).fit(X[30:], y[30:], sample_ids=NAMES[30:]))
        )
    assert [row["same"] for row in both.find(X[40:41])[0]] == [True]
    with pytest.raises(NoFeaturesError):
        both.unlearn(sample_ids=["person 3"])
    both.unlearn(X[[0, 31]])  # kept features of the first, a pass for the other
    assert not both.receipts_[-1]["kept_features"]
    left = np.setdiff1d(np.arange(60), [0, 31])
    assert gap(both, make().fit(X[left], y[left])) < 1e-10


def test_find_tells_a_row_by_its_content_too():
    X = np.arange(12.0).reshape(4, 3)
    clf = make().fit(X, np.array([*"abab"], dtype=object), sample_ids=[*"wxyz"])
    clf.unlearn(X[2:])
    found = clf.find(X[:1])[0][0]
    assert (found["sample_id"], found["label"], found["same"]) == ("w", "a", True)


def test_a_search_keeps_them_too(blobs):
    X, y = blobs
    search = FastNTKClassifierCV(keep="features", alphas=[0.1], random_state=0)
    search.fit(X, y, sample_ids=NAMES).unlearn(sample_ids=["person 3"])
    assert gap(search, make(alpha=0.1).fit(X[~OF_3], y[~OF_3])) < 1e-10


def test_without_kept_features(blobs):
    X, y = blobs
    clf = make(keep=None).fit(X, y, sample_ids=NAMES)
    for call in (
        lambda: clf.unlearn(sample_ids=["person 3"]),
        lambda: clf.rebuild(),
        lambda: clf.find(X[:1]),
    ):
        with pytest.raises(NoFeaturesError, match="keep"):
            call()
    assert not clf.can_unlearn(sample_ids=["person 3"])["possible"]
    assert clf.n_samples_forgotten_ == 0
    for arguments in ({}, {"y_forget": y[:1], "sample_ids": ["person 3"]}):
        with pytest.raises(ValueError, match="X_forget"):
            clf.unlearn(**arguments)
    with pytest.raises(ValueError, match="tangents of its own"):
        make(trainable="norm").fit(X, y)
    with pytest.raises(ValueError, match="'keep' parameter"):
        make(keep="pictures").fit(X, y)


def test_ids_are_text_or_integers(blobs):
    X, y = blobs
    ids = [
        1,
        "1",
        unicodedata.normalize("NFD", "Zoë"),
        np.int64(7),
        None,
        float("nan"),
        *range(100, 154),
    ]
    clf = make().fit(X, y, sample_ids=np.array(ids, dtype=object))
    for given, n_left in (("1", 59), (1, 58), (unicodedata.normalize("NFC", "Zoë"), 57), (7, 56)):
        assert clf.unlearn(sample_ids=[given]).n_samples_learned_ == n_left
    for wrong in (1.5, b"x", True, np.datetime64("2020-01-01"), "\udcff", 2**63, (1, 2)):
        given = np.empty(60, dtype=object)
        given[3] = wrong
        with pytest.raises(ValueError, match="in row 3"):
            make().fit(X, y, sample_ids=given)


@pytest.mark.parametrize("label", [None, float("nan"), np.datetime64("2020-01-01"), "\udcff", (1,)])
def test_labels_that_cannot_be_saved_are_refused_at_fit(blobs, label):
    names = np.array([*"abc"], dtype=object)[blobs[1]]
    names[5] = label
    with pytest.raises(ValueError, match=r"row 5|NaN"):
        make().fit(blobs[0], names)
