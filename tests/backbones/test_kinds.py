"""What X can be: every kind that means the same pictures learns, predicts and forgets the same."""

import io
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
from sklearn.model_selection import (
    GridSearchCV,
    cross_val_predict,
    cross_val_score,
    train_test_split,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.semi_supervised import SelfTrainingClassifier
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
    settings = {"image_size": SIZE, "random_state": 0, "batch_size": 4, "n_components": 8}
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
    "pandas Series, shuffled index": lambda X, paths, folder: (
        frame("pandas", paths[::-1])["path"].sort_index(ascending=False)
    ),
    "pandas category": lambda X, paths, folder: frame("pandas", paths)["path"].astype("category"),
    "polars Series": lambda X, paths, folder: frame("polars", paths)["path"],
    "polars DataFrame": lambda X, paths, folder: frame("polars", paths),
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

FLOATS = {
    "float64": lambda X: X,
    "float16": lambda X: X.astype(np.float16),
    "big-endian": lambda X: X.astype(">f4"),
    "bfloat16 tensor": lambda X: first(X).bfloat16(),
    "tensor with a gradient": lambda X: first(X).requires_grad_(),
}


def digests(X, size=(SIZE, SIZE)):
    return [content(row) for row in Rows(check_images(X), InputSpec(size))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_learned_predicted_and_forgotten_alike(kind, X, y, paths, learned, tmp_path):
    same, some = KINDS[kind](X, paths, tmp_path), KINDS[kind](X[:4], paths[:4], tmp_path)
    clf = tiny().fit(same, y)
    np.testing.assert_array_equal(clf.readout_, learned.readout_)
    np.testing.assert_array_equal(clf.predict_proba(X), learned.predict_proba(same))
    clf.unlearn(X[:4])  # learned as one kind, forgotten as another
    np.testing.assert_array_equal(clf.readout_, deepcopy(learned).unlearn(some).readout_)
