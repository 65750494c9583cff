"""What X can be: every kind that means the same pictures learns, predicts and forgets the same."""

import multiprocessing
import os
import signal
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.helper import SliceDataset
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV, unlearn
from fastntk_sk.backbones.inputs import InputSpec, Rows, content
from fastntk_sk.backbones.kinds import check_images
from fastntk_sk.exceptions import WorkerError

SIZE = 16


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def tiny(**changes):
    settings = {"image_size": SIZE, "random_state": 0, "batch_size": 16, "trainable": "head"}
    return FastNTKClassifier(network, **(settings | changes))


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).integers(0, 256, (12, 20, 18, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def y():
    return np.array(list("ab") * 6)


@pytest.fixture(scope="module")
def learned(X, y):
    return tiny().fit(X, y)


@pytest.fixture(scope="module")
def paths(X, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    found = [str(folder / f"{i:02d}.png") for i in range(len(X))]
    for path, row in zip(found, X, strict=True):
        Image.fromarray(row).save(path)
    return found


class Pairs(Dataset):
    """As torchvision's folders; it has no end, as many of these have none."""

    def __init__(self, X, make=Image.fromarray):
        self.X, self.make = X, make

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.make(self.X[i % len(self.X)]), i % 2, "else"


class Dicts(Pairs):
    def __getitem__(self, i):
        picture, label, _ = super().__getitem__(i)
        return {"image": picture, "label": torch.tensor(label), "box": np.zeros(4), "path": "x.png"}


def objects(items):
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


def pil(X):
    return [Image.fromarray(row) for row in X]


def first(X):
    return torch.from_numpy(X).movedim(-1, 1)


def hugging_face(X):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": pil(X), "label": [*range(len(X))]}, features=features)


def undecoded(X):
    return hugging_face(X).cast_column("image", pytest.importorskip("datasets").Image(decode=False))


def mapped(X, folder):
    found = np.memmap(folder / f"{len(X)} rows", np.uint8, "w+", shape=X.shape)
    found[:] = X
    return found


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


def frame(library, items):
    return pytest.importorskip(library).DataFrame({"path": items})


def encoded(paths):
    """Files as the Parquet files of Hugging Face datasets hold them."""
    return [{"bytes": Path(path).read_bytes(), "path": path} for path in paths]


def arrow(paths, table=False, chunked=False):
    pyarrow = pytest.importorskip("pyarrow")
    if table:
        return pyarrow.table({"path": paths})
    return pyarrow.chunked_array([paths[:2], paths[2:]]) if chunked else pyarrow.array(paths)


KINDS = {
    "array": lambda X, paths, folder: X,
    "memory map": lambda X, paths, folder: mapped(X, folder),
    "read-only array": lambda X, paths, folder: read_only(X),
    "Fortran order": lambda X, paths, folder: np.asfortranarray(X),
    "negative strides": lambda X, paths, folder: X[:, ::-1].copy()[:, ::-1],
    "masked array without a mask": lambda X, paths, folder: np.ma.masked_array(X),
    "object array": lambda X, paths, folder: objects([*X]),
    "stacked tensor": lambda X, paths, folder: first(X),
    "contiguous tensor": lambda X, paths, folder: first(X).contiguous(),
    "list of arrays": lambda X, paths, folder: [*X],
    "tuple of arrays": lambda X, paths, folder: tuple(X),
    "list of tensors": lambda X, paths, folder: [*first(X)],
    "list of PIL images": lambda X, paths, folder: pil(X),
    "object array of PIL images": lambda X, paths, folder: objects(pil(X))[:, None],
    "list of paths": lambda X, paths, folder: paths,
    "list of Path": lambda X, paths, folder: [*map(Path, paths)],
    "array of text": lambda X, paths, folder: np.array(paths),
    "column of text": lambda X, paths, folder: np.array(paths)[:, None],
    "column of objects": lambda X, paths, folder: objects(paths)[:, None],
    "numpy's own strings": lambda X, paths, folder: np.array(paths, np.dtypes.StringDType()),
    "list of rows of one": lambda X, paths, folder: [[path] for path in paths],
    "mixed list": lambda X, paths, folder: [X[0], first(X)[1], pil(X)[2], *paths[3:]],
    "pandas Series": lambda X, paths, folder: frame("pandas", paths)["path"],
    "pandas DataFrame": lambda X, paths, folder: frame("pandas", paths),
    "pandas Series of PIL images": lambda X, paths, folder: frame("pandas", pil(X))["path"],
    "pandas Series, shuffled index": lambda X, paths, folder: frame("pandas", paths[::-1])[
        "path"
    ].sort_index(ascending=False),
    "pandas category": lambda X, paths, folder: frame("pandas", paths)["path"].astype("category"),
    "polars Series": lambda X, paths, folder: frame("polars", paths)["path"],
    "polars DataFrame": lambda X, paths, folder: frame("polars", paths),
    "polars DataFrame of files": lambda X, paths, folder: frame("polars", encoded(paths)),
    "polars Series of files": lambda X, paths, folder: frame("polars", encoded(paths))["path"],
    "pyarrow Array": lambda X, paths, folder: arrow(paths),
    "pyarrow ChunkedArray": lambda X, paths, folder: arrow(paths, chunked=True),
    "pyarrow Table": lambda X, paths, folder: arrow(paths, table=True),
    "list of pyarrow scalars": lambda X, paths, folder: [*arrow(paths)],
    "dataset": lambda X, paths, folder: Pairs(X),
    "dataset of arrays": lambda X, paths, folder: Pairs(X, np.asarray),
    "dataset of dicts": lambda X, paths, folder: Dicts(X),
    "dataset of dicts of tensors": lambda X, paths, folder: Dicts(first(X), torch.clone),
    "TensorDataset": lambda X, paths, folder: TensorDataset(first(X), torch.arange(len(X))),
    "list of items of a dataset": lambda X, paths, folder: [*map(Pairs(X).__getitem__, range(len(X)))],
    "list of dicts": lambda X, paths, folder: [*map(Dicts(X).__getitem__, range(len(X)))],
    "Subset": lambda X, paths, folder: Subset(Pairs(X[::-1]), range(len(X))[::-1]),
    "ConcatDataset": lambda X, paths, folder: ConcatDataset([Pairs(X[:2]), Pairs(X[2:])]),
    "SliceDataset": lambda X, paths, folder: SliceDataset(Pairs(X)),
    "Hugging Face dataset": lambda X, paths, folder: hugging_face(X),
    "Hugging Face column": lambda X, paths, folder: hugging_face(X)["image"],
    "Hugging Face, torch": lambda X, paths, folder: hugging_face(X).with_format("torch"),
    "Hugging Face, numpy": lambda X, paths, folder: hugging_face(X).with_format("numpy"),
    "Hugging Face, not decoded": lambda X, paths, folder: undecoded(X),
    "Hugging Face column, not decoded": lambda X, paths, folder: undecoded(X)["image"],
}


def digests(X):
    return [content(row) for row in Rows(check_images(X), InputSpec((SIZE, SIZE)))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_learned_predicted_and_forgotten_alike(kind, X, y, paths, learned, tmp_path):
    same, some = KINDS[kind](X, paths, tmp_path), KINDS[kind](X[:4], paths[:4], tmp_path)
    clf = tiny().fit(same, y)
    np.testing.assert_array_equal(clf.readout_, learned.readout_)
    np.testing.assert_array_equal(clf.predict_proba(X), learned.predict_proba(same))
    clf.unlearn(X[:4])  # learned as one kind, forgotten as another
    np.testing.assert_array_equal(clf.readout_, deepcopy(learned).unlearn(some).readout_)


@pytest.mark.parametrize("make", [np.float64, np.float16, ">f4", torch.bfloat16, torch.float64])
def test_floats_are_the_same_whatever_their_type(make):
    X = np.random.default_rng(0).integers(0, 256, (3, 10, 10, 3)) / 256  # exact in half precision
    tensor = first(X).to(make).requires_grad_() if isinstance(make, torch.dtype) else None
    assert digests(X.astype(make) if tensor is None else tensor) == digests(X.astype(np.float32))


def test_colours_become_the_same_grey_whatever_their_type_and_order():
    X = np.random.default_rng(0).random((3, 16, 16, 3)).astype(np.float16)
    kinds = (X, X.astype(np.float32), X.astype(">f8"), np.asfortranarray(X), [*first(X)])
    spec = InputSpec((16, 16), channels=1)
    found = [[content(row) for row in Rows(check_images(same), spec)] for same in kinds]
    assert found == [found[0]] * len(kinds)


def test_grey_pictures_masks_and_16_bits(X):
    grey = X[..., 0]
    expected = digests(grey)
    for same in (grey[..., None], np.repeat(grey[..., None], 3, -1), torch.from_numpy(grey)):
        assert digests(same) == expected
    assert digests(torch.from_numpy(grey)[:, None]) == digests([*torch.from_numpy(grey)]) == expected
    mask = grey > 128
    black_and_white = digests(np.where(mask, 255, 0).astype(np.uint8))
    for same in (mask, torch.from_numpy(mask), [Image.fromarray(row) for row in mask]):
        assert digests(same) == black_and_white
    deep = X.astype(np.uint16) * 257
    for same in (deep, deep.astype(">u2"), first(deep), [*deep]):
        assert digests(same) == digests((deep / 65535).astype(np.float32))


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield np.zeros((8, 8))


class NoLength:
    def __getitem__(self, i):
        return np.zeros((8, 8))


REFUSED = {
    "one picture": (lambda X: X[0], r"X\[None\] for one picture"),
    "one grey picture": (lambda X: X[0, ..., 0], r"X\[None\]"),
    "one grey picture with its channel": (lambda X: X[0, ..., :1], r"X\[None\] for one picture"),
    "one tensor": (lambda X: first(X)[0], r"X\[None\] for one picture, X\[:, None\] for grey"),
    "one tensor, channels last": (lambda X: torch.from_numpy(X)[0], r"X.movedim\(-1, 0\)\[None\]"),
    "array, channels first": (lambda X: np.moveaxis(X, -1, 1), r"numpy.moveaxis\(X, -3, -1\)"),
    "tensor, channels last": (lambda X: torch.from_numpy(X), r"X.movedim\(-1, -3\)"),
    "tensors, channels last": (lambda X: [*torch.from_numpy(X)], r"X.movedim\(-1, -3\)"),
    "set": (lambda X: {"a.png"}, r"sorted\(X\)"),
    "dict": (lambda X: {"train": X}, r"X.values\(\)"),
    "values of a dict": (lambda X: {"train": X}.values(), r"list\(X\)"),
    "generator": (lambda X: (row for row in X), r"list\(X\)"),
    "map": (lambda X: map(np.asarray, X), r"list\(X\)"),
    "IterableDataset": (lambda X: Endless(), "map-style"),
    "DataLoader": (lambda X: DataLoader(Pairs(X)), "X.dataset"),
    "no length": (lambda X: NoLength(), "__len__"),
    "streaming": (lambda X: hugging_face(X).to_iterable_dataset(), "not streaming"),
    "integers": (lambda X: X.astype(int), r"X.astype\('uint8'\).*X / 65535"),
    "tensor of integers": (lambda X: first(X).long(), r"X.byte\(\)"),
    "floats to 255": (lambda X: first(X).float(), r"Scale them to \[0, 1\]"),
    "mask": (lambda X: np.ma.masked_greater(X, 200), r"X.filled\(0\)"),
    "numbers as objects": (lambda X: X.astype(object), r"X.astype\('uint8'\)"),
    "two columns": (lambda X: np.array([["a.png", "b.png"]]), r"X\[\['path'\]\]"),
    "flat": (lambda X: X.reshape(12, -1), r"X.reshape\(-1, 28, 28\)"),
    "sparse tensor": (lambda X: first(X).to_sparse(), r"X.to_dense\(\)"),
    "list of meta tensors": (lambda X: [first(X)[0].to("meta")], "no values"),
    "text for bytes": (lambda X: [{"bytes": "abc", "path": None}], "got 0 in the columns"),
    "folder": (lambda X: ["."], r"It is a folder: pass read_pictures\(folder\).paths"),
    "missing file": (lambda X: ["no.png"], "Row 0 cannot be read: no file at 'no.png'"),
    "label before picture": (lambda X: [(1, row) for row in X], "got int in row 0"),
    "missing path": (lambda X: [X[0], None], "got NoneType in row 1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_collection_of_pictures_is_refused_with_the_remedy(kind, X, y, learned):
    make, message = REFUSED[kind]
    before = learned.readout_.copy()
    for call in (learned.predict, learned.unlearn, lambda X: learned.partial_fit(X, y)):
        with pytest.raises(ValueError, match=message):
            call(make(X))
    np.testing.assert_array_equal(learned.readout_, before)


def test_the_remedies_work(X):
    tensor = torch.from_numpy(X)
    assert digests(X[0][None]) == digests(tensor[0].movedim(-1, 0)[None]) == digests(X[:1])
    assert digests(np.moveaxis(np.moveaxis(X, -1, 1), -3, -1)) == digests(tensor.movedim(-1, -3))
    assert digests(tensor[..., 0][:3, None]) == digests(X[:3, ..., 0])
    assert digests(first(X).long().byte()) == digests(X.astype(int).astype("uint8"))


def test_inconsistent_lengths_are_in_scikit_learns_words(X, y):
    for rows in (X, Pairs(X), hugging_face(X)):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            tiny().fit(rows, y[:-1])


META = {
    "search": lambda: GridSearchCV(tiny(), {"alpha": [0.1, 1.0]}, cv=2, error_score="raise"),
    "calibrated": lambda: CalibratedClassifierCV(tiny(), cv=2),
    "voting": lambda: VotingClassifier([("a", tiny()), ("b", tiny(alpha=1.0))], voting="soft"),
    "stacking": lambda: StackingClassifier([("a", tiny())], cv=2),
    "one versus rest": lambda: OneVsRestClassifier(tiny()),
    "pipeline": lambda: make_pipeline(FunctionTransformer(), tiny()),
    "own search": lambda: FastNTKClassifierCV(
        network, image_size=SIZE, trainable="head", alphas=[0.01, 0.1, 1.0], cv=2, random_state=0
    ),
}


@pytest.mark.filterwarnings("ignore:The best alpha")
@pytest.mark.parametrize("name", META)
def test_meta_estimators_pass_a_dataset_as_an_array(name, X, y):
    from_array, from_dataset = META[name]().fit(X, y), META[name]().fit(Pairs(X), y)
    expected = from_array.predict_proba(X)
    np.testing.assert_array_equal(from_dataset.predict_proba(Pairs(X)), expected)


def test_splits_of_a_dataset(X, y):
    expected = cross_val_score(tiny(), X, y, cv=3)
    for rows in (Pairs(X), hugging_face(X)["image"], SliceDataset(Pairs(X))):
        np.testing.assert_array_equal(cross_val_score(tiny(), rows, y, cv=3), expected)
    train, test, y_train, _ = train_test_split(Pairs(X), y, test_size=4, stratify=y, random_state=0)
    clf = tiny().fit(train, y_train)
    assert len(clf.predict(test)) == 4
    clf.unlearn(Subset(Pairs(X), [[*digests(X)].index(digests(train)[0])]))
    assert clf.n_samples_learned_ == 7


def test_columns_of_scikit_learn(paths, y, X, learned):
    table = frame("pandas", paths).assign(age=range(12))
    columns = ColumnTransformer([("path", "passthrough", ["path"])])
    pipeline = make_pipeline(columns, tiny()).fit(table, y)
    np.testing.assert_array_equal(pipeline[-1].readout_, learned.readout_)
    with pytest.warns(UserWarning, match="columntransformer"):
        unlearn(pipeline, table[:2])
    np.testing.assert_array_equal(pipeline[-1].readout_, deepcopy(learned).unlearn(X[:2]).readout_)
    bagging = BaggingClassifier(tiny(), n_estimators=2, random_state=0).fit(table[["path"]], y)
    assert bagging.predict(table[["path"]]).shape == (12,)


class Augmented(Pairs):
    """A dataset whose random transform keeps a picture with probability one half."""

    def __getitem__(self, i):
        picture = self.X[i][:, ::-1] if self.draws.random() < 0.5 else self.X[i]
        return picture, i % 2

    draws = np.random.default_rng(0)


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: Subset(rows, range(12))])
def test_a_random_transform_is_refused_before_anything_is_learned(X, y, learned, wrap):
    rows = wrap(Augmented(X))
    for _ in range(3):
        for call in (tiny().fit, deepcopy(learned).partial_fit, deepcopy(learned).rebuild):
            with pytest.raises(ValueError, match="same picture each time.*random transforms"):
                call(rows, y)
    assert learned.predict(rows).shape == (12,)


def test_the_default_backbone_tells_what_pictures_need(X, y, paths):
    named = "backbone=.tf_efficientnet_lite0"
    kinds = (X, X.astype(int), first(X), [*X], pil(X), pil(X[:1]) + pil(X[1:, :5]), paths, Pairs(X))
    for rows in (*kinds, hugging_face(X), frame("pandas", paths), np.array(paths)[:, None], ["no.png"]):
        with pytest.raises(ValueError, match=named):
            FastNTKClassifier().fit(rows, y)
    vectors = FastNTKClassifier(random_state=0).fit(X.reshape(12, -1), y)
    with pytest.raises(ValueError, match=named):
        vectors.predict(X)
    with pytest.raises(ValueError, match="^could not convert string to float: 'a'"):
        FastNTKClassifier().fit(np.array([["a", "b"]] * 12, dtype=object), y)


def test_vectors_of_tensors(y):
    V = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    expected = FastNTKClassifier(random_state=0).fit(V, y).predict_proba(V)
    for rows in (
        torch.from_numpy(V).requires_grad_(),
        V.tolist(),
        pytest.importorskip("polars").from_numpy(V),
    ):
        clf = FastNTKClassifier(random_state=0).fit(rows, y)
        np.testing.assert_array_equal(clf.predict_proba(rows), expected)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    clf = FastNTKClassifier(net, trainable="head", random_state=0)
    assert clf.fit(torch.from_numpy(V).requires_grad_(), y).n_features_in_ == 5


def fit_with_workers(X, y):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        clf = tiny(num_workers=1).fit(X, y)
    return [str(warning.message) for warning in told], clf.readout_


def test_a_daemonic_process_reads_by_itself(X, y, learned):
    with multiprocessing.Pool(1) as pool:
        told, readout = pool.apply(fit_with_workers, (X, y))
    assert len(told) == 1
    assert "read in this process" in told[0]
    np.testing.assert_array_equal(readout, learned.readout_)


@pytest.mark.slow
def test_processes_of_joblib_read_by_themselves(X, y, learned):
    from joblib import Parallel, delayed

    for told, readout in Parallel(2)(delayed(fit_with_workers)(X, y) for _ in range(2)):
        assert len(told) == 1
        assert "read in this process" in told[0]
        np.testing.assert_array_equal(readout, learned.readout_)


def test_what_cannot_be_sent_is_read_here(X, y, learned, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    with pytest.warns(UserWarning, match="X cannot be sent") as told:
        clf = tiny(num_workers=1).fit(Pairs(X, lambda row: row), y)
    assert len(told) == 1
    np.testing.assert_array_equal(clf.readout_, learned.readout_)


FINETUNED = {"anchor": "finetuned", "trainable": "full", "max_epochs": 1}


@pytest.mark.parametrize("params", [{}, FINETUNED])
def test_errors_of_workers_are_those_of_the_library(X, y, params):
    rows = [*X[:5], X[5].astype(int)]
    with pytest.raises(ValueError, match="^Expected images.*got row 5 of dtype int64"):
        tiny(num_workers=1, **params).fit(rows, y[:6])


class Fatal(Pairs):
    def __getitem__(self, i):
        if i == 7 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def test_a_worker_that_is_killed(X, y):
    with pytest.raises(WorkerError, match="num_workers=0"):
        tiny(num_workers=1).fit(Fatal(X), y)
