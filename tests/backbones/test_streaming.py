"""What is larger than memory is read on demand, in order, by workers if asked."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.inputs import InputSpec, Rows
from fastntk_sk.backbones.kinds import check_images
from fastntk_sk.exceptions import StateMismatchError


def convolution():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def tiny_cnn(**changes):
    settings = {"image_size": 16, "random_state": 0, "batch_size": 8}
    return FastNTKClassifier(convolution, **(settings | changes))


@pytest.fixture(scope="module")
def pictures(digits):
    return digits[0][:24], digits[1][:24]


@pytest.fixture(scope="module")
def learned(pictures):
    return tiny_cnn().fit(*pictures)


def assert_same(clf, other):
    np.testing.assert_array_equal(clf.readout_, other.readout_)
    np.testing.assert_array_equal(clf.displacement_, other.displacement_)


class OnDemand(Dataset):
    """As torchvision's folders: pairs of a picture and a label, made when they are asked for."""

    def __init__(self, X, make=Image.fromarray):
        self.X, self.make, self.read = X, make, []

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        self.read.append(i)
        return self.make(self.X[i]), 0


class Columns(OnDemand):
    """As a dataset of Hugging Face: rows are dicts."""

    def __getitem__(self, i):
        return {"picture": super().__getitem__(i)[0], "label": 3}


def memory_map(X, tmp_path, dtype=np.uint8):
    found = np.memmap(tmp_path / "rows", dtype=dtype, mode="w+", shape=X.shape)
    found[:] = X
    return found


@pytest.mark.parametrize("n_workers", [0, 2])
def test_every_source_gives_the_same_model(pictures, learned, tmp_path, n_workers):
    X, y = pictures
    paths = []
    for i, row in enumerate(X):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(row).save(paths[-1])
    channels_first = torch.from_numpy(X)[:, None].repeat(1, 3, 1, 1)
    pairs = TensorDataset(channels_first, torch.arange(len(y)))
    sources = [paths, memory_map(X, tmp_path), OnDemand(X), Columns(X), pairs, channels_first]
    for source in sources[: 2 if n_workers else None]:
        clf = tiny_cnn(num_workers=n_workers).fit(source, y)
        assert_same(clf, learned)
        np.testing.assert_array_equal(clf.predict(source), learned.predict(X))
        assert clf.unlearn(X[:3]).n_samples_learned_ == 21


def test_rows_are_read_once_and_in_order(pictures):
    X, y = pictures
    source = OnDemand(X)
    tiny_cnn().fit(source, y)
    read = source.read[-len(X) :]
    assert read == list(range(len(X)))
    # one is looked at to know what they are, and three are read four times to see that they stay
    assert len(source.read) - len(X) <= 13


def test_a_memory_map_of_floats_is_checked_row_by_row(pictures, tmp_path):
    X = memory_map(pictures[0] / 255, tmp_path, np.float32)
    bad = X.copy()
    bad[5] = np.nan
    X = memory_map(bad, tmp_path, np.float32)
    with pytest.raises(ValueError, match="Input row 5 contains NaN"):
        tiny_cnn().fit(X, pictures[1])


def test_a_memory_map_travels_by_name(pictures, tmp_path):
    """To workers that are not forked; but for a private copy, whose changes the file does not have."""
    whole = memory_map(pictures[0], tmp_path)
    whole.flush()
    private = np.memmap(tmp_path / "rows", np.uint8, "c", shape=whole.shape)
    private[0] = 0
    later = np.memmap(tmp_path / "rows", np.uint8, "r", 2 * 64, (3, 8, 8), "F")
    for X, by_name in ((whole, True), (later, True), (private, False), (whole[2:], False)):
        rows = Rows(X, InputSpec((8, 8)))
        received = pickle.loads(pickle.dumps(rows))
        assert (received.items.filename is not None) == by_name
        np.testing.assert_array_equal(received.items, X)


def test_rows_of_weight_zero_are_left_where_they_are(pictures, learned, tmp_path):
    X, y = pictures
    w = np.r_[np.zeros(4), np.ones(20)]
    for source in (memory_map(X, tmp_path), OnDemand(X), [*X]):
        clf = tiny_cnn().fit(source, y, sample_weight=w, classes=np.unique(y))
        assert clf.n_samples_learned_ == 20
        assert_same(clf, tiny_cnn().fit(X[4:], y[4:], classes=np.unique(y)))


def test_workers_read_some_rows(pictures):
    rows = Rows(pictures[0], InputSpec((16, 16)), 2)
    wanted, before = [5, 3, 20, 3], torch.get_rng_state()
    for found, i in zip(rows.read(wanted), wanted, strict=True):
        np.testing.assert_array_equal(found, rows[i])
    assert torch.equal(torch.get_rng_state(), before)


def test_errors_of_workers_are_those_of_reading(pictures, tmp_path):
    Image.fromarray(pictures[0][0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="Row 1 cannot be read"):
        tiny_cnn(num_workers=1).fit([tmp_path / "a.png", tmp_path / "b.png"], [0, 1])


def test_items_that_hold_no_single_picture(pictures):
    X = pictures[0]
    both = [{"a": row, "b": row} for row in X]
    with pytest.raises(ValueError, match="got 2 in the columns"):
        check_images(OnDemand(both, lambda row: row))
    with pytest.raises(ValueError, match="got int in row 0"):
        check_images(OnDemand(X, lambda row: 7))
    with pytest.raises(ValueError, match="0 sample"):
        check_images(OnDemand(X[:0]))


def test_a_source_that_changes_while_it_is_read_forgets_nothing():
    """A random transform gives another picture the second time."""
    X = np.random.default_rng(0).integers(0, 256, size=(8, 8, 8), dtype=np.uint8)

    class Moving:
        def __init__(self):
            self.reads = 0

        def __len__(self):
            return 2

        def __getitem__(self, i):
            self.reads += 1
            return X[i] if self.reads <= 3 else X[i][::-1]

    clf = FastNTKClassifier(
        nn.Flatten(), trainable="head", image_size=8, random_state=0, batch_size=4
    ).fit(X, np.arange(8) % 2)
    before = clf.readout_.copy()
    with pytest.raises(StateMismatchError, match="to be the same each time it is read"):
        clf.unlearn(Moving())
    np.testing.assert_array_equal(clf.readout_, before)
    assert clf.n_samples_learned_ == 8
