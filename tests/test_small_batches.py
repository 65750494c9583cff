"""Sizes of batches: what "auto" chooses, and the smaller ones in which few rows are forgotten."""

import numpy as np
import pytest
import torch

from fastntk_sk import FastNTKClassifier
from fastntk_sk.sums.memory import choose_batch_size
from fastntk_sk.tangents.model import LinearizedModel

RANDOM = np.random.default_rng(0)
PICTURES, VECTORS = RANDOM.random((40, 16, 16, 3)), RANDOM.normal(size=(40, 8))
LABELS = np.arange(40) % 2
PASSED = []


class Counted(torch.nn.Sequential):
    """Convolutions that note how many rows pass them, and may depend on that number."""

    by_number = 0.0

    def __init__(self):
        wide, narrow = torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 16, 3)
        super().__init__(wide, torch.nn.ReLU(), narrow, torch.nn.ReLU())

    def forward(self, x):
        PASSED.append(len(x))
        return super().forward(x).mean((2, 3)) * (1 + self.by_number * len(x))


class Uneven(Counted):
    by_number = 1e-5


class Dead(Uneven):
    """Gives zeros for synthetic rows, and for all that are not bright everywhere."""

    def __init__(self):
        super().__init__()
        self.append(torch.nn.Conv2d(16, 128, 1))

    def forward(self, x):
        return super().forward(x) * (x.amin((1, 2, 3)) > 0)[:, None]


def fitted(backbone=Counted, X=PICTURES, **changes):
    size = {} if X is VECTORS else {"image_size": 16}
    settings = {"random_state": 0, "backbone_has_seen": False} | size | changes
    return FastNTKClassifier(backbone, **settings).fit(X, LABELS)


def passed(function, *args):
    PASSED.clear()
    function(*args)
    return sum(PASSED)


@pytest.mark.parametrize(
    ("X", "settings"),
    [
        (PICTURES, {}),
        (PICTURES, {"augment": "flip", "trainable": "head"}),
        (PICTURES, {"trainable": "bias", "kernel": "pseudo"}),
        (PICTURES, {"trainable": "bias", "anchor": "finetuned", "max_epochs": 1}),
        (VECTORS, {"backbone": "mlp", "batch_size": 20}),
        (PICTURES, {"precision": "bfloat16"}),
    ],
)
def test_a_small_batch_changes_no_bit(monkeypatch, X, settings):
    with monkeypatch.context() as full:
        full.setattr(LinearizedModel, "smaller_sizes", lambda model, n_rows: [])
        expected = fitted(X=X, **settings).unlearn(X[:1]).unlearn(X[3:9])
        expected.rectify(X[10:11], 1 - LABELS[10:11])
    clf = fitted(X=X, **settings).unlearn(X[:1]).unlearn(X[3:9])
    clf.rectify(X[10:11], 1 - LABELS[10:11])
    np.testing.assert_array_equal(clf.readout_, expected.readout_)
    np.testing.assert_array_equal(clf.displacement_, expected.displacement_)
    assert [receipt["drift"] for receipt in clf.receipts_] == [0.0] * 3


def test_one_row_passes_with_few_others():
    clf = fitted(trainable="bias")
    few, many = (clf.can_unlearn(PICTURES[1:stop])["seconds"] for stop in (2, 38))
    assert few < many
    assert passed(clf.unlearn, PICTURES[:1]) < 64  # the probe's batch of 32, and one of 32
    assert passed(clf.unlearn, PICTURES[1:38]) == 32 + 64


def test_a_network_that_depends_on_the_size_of_its_batch_gets_the_whole_one():
    clf = fitted(Uneven, trainable="bias")
    assert passed(clf.unlearn, PICTURES[:1]) == 4 + 16 + 32 + 32
    assert clf.receipts_[0]["exactness"]["exact"]
    again = FastNTKClassifier(**clf.get_params()).fit(PICTURES[1:], LABELS[1:])
    np.testing.assert_allclose(clf.readout_, again.readout_, rtol=1e-6, atol=1e-9)


def test_zeros_of_synthetic_rows_prove_no_smaller_batch():
    bright = 0.6 + 0.4 * PICTURES
    clf = fitted(Dead, bright, trainable="head", alpha=0.1)
    assert passed(clf.unlearn, bright[:1]) == 32 + 32
    again = FastNTKClassifier(**clf.get_params()).fit(bright[1:], LABELS[1:])
    np.testing.assert_allclose(clf.readout_, again.readout_, rtol=1e-6, atol=1e-9)


def test_auto_is_a_number_of_the_model_and_of_its_file(tmp_path):
    clf = fitted(trainable="head")
    assert clf.batch_size == "auto"
    size = clf._private.state.settings.batch_size
    assert size == 32
    clf.save(tmp_path / "model")
    assert (
        FastNTKClassifier.load(tmp_path / "model", backbone=Counted)._adapter.settings.batch_size == 32
    )
    same = fitted(trainable="head", batch_size=np.int64(32))
    np.testing.assert_array_equal(same.readout_, clf.readout_)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", "xpu"])
def test_batches_shrink_with_what_a_row_takes(device):
    rows = [choose_batch_size([10**e, 10], 0, 4, device) for e in range(3, 9)]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == {"cpu": 32, "mps": 128}.get(device, 512)
    assert rows[-1] == 8
    assert choose_batch_size([10**5] * 9, 10**5, 4, device) <= choose_batch_size(
        [10**5] * 9, 0, 4, device
    )
