"""Where a pass computes, what travels, and that a device computes a row the same way every time."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from cases import gap
from simulated import DEVICE, Simulated
from torch import nn

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV
from fastntk_sk.distributed import Ranks
from fastntk_sk.evaluation import shadow_margins
from fastntk_sk.exceptions import JacobianError, NumericalDriftWarning
from fastntk_sk.inspection import label_issues
from fastntk_sk.state import sum_rows
from fastntk_sk.tangents.threads import exact_kernels

CUDA = torch.device("cuda")
BACKENDS = torch.backends
N, SIDE, BATCH = 60, 8, 20
KINDS = {
    "ladder": {},
    "full kernel": {"trainable": "norm"},
    "ladder and pseudo kernel, mirrored": {
        "trainable": ["ladder", "norm"],
        "kernel": "pseudo",
        "n_directions": 2,
        "augment": "flip",
    },
    "generic taps, displaced network": {"trainable": "full", "predict_with": "network"},
}


class Net(nn.Module):
    """A convolution of three pixels and a linear layer have no tap of their own, and one that has."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.Sequential(self._block(3, 6), self._block(6, 6))

    @staticmethod
    def _block(n_in, n_out):
        parts = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
        return nn.Sequential(*parts, nn.Conv2d(n_out, n_out, 1))

    def forward(self, x):
        return self.blocks(x).mean((2, 3))


def pictures(n=N):
    draws = np.random.default_rng(0)
    return draws.integers(256, size=(n, SIDE, SIDE, 3), dtype=np.uint8), np.arange(n) % 3


def classifier(device, **params):
    common = {"image_size": SIDE, "n_components": 12, "batch_size": BATCH, "alpha": 0.1}
    return FastNTKClassifier(Net(), device=str(device), random_state=0, **common | params)


def life(device, **params):
    """Learn in two parts, forget, and predict."""
    X, y = pictures()
    clf = classifier(device, **params).fit(X[:50], y[:50])
    clf.partial_fit(X[50:], y[50:]).unlearn(X[:5])
    return clf, clf.decision_function(X)


def came(log, way):
    return [(shape, dtype) for kind, shape, dtype in log if kind == way]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_is_made_where_it_is_asked_for(kind, monkeypatch):
    """On a simulated device pictures, labels and weights go in, and what comes out is the CPU's."""
    monkeypatch.setattr("fastntk_sk.tangents.model.rows_at_once", lambda *sizes: 2 * BATCH)
    on_cpu, expected = life("cpu", **KINDS[kind])
    with Simulated() as device:
        clf, found = life(DEVICE, **KINDS[kind])
        np.testing.assert_array_equal(found, expected)
        assert clf.receipts_[0]["drift"] == on_cpu.receipts_[0]["drift"] == 0
        state = clf._private.state
        for name, sums in state.statistics.tensors().items():
            assert torch.equal(sums, on_cpu._private.state.statistics.tensors()[name])

        (X, y), model, log = pictures(), state.model, device.log
        rows, ones = list(clf._rows(X)), np.ones(N)
        log.clear()
        model.learn(model.empty_statistics(DEVICE), rows, y, ones)
        # once a block: whether all is finite, whether its rows have one weight, and which
        assert len(came(log, "wait")) == 2 * 3
        pixels, scales = ((BATCH, 3, SIDE, SIDE), torch.uint8), ((BATCH,), torch.float32)
        assert came(log, "in").count(pixels) == came(log, "in").count(scales) == N / BATCH
        labels_and_weights = [each for each in came(log, "in") if each not in (pixels, scales)]
        kinds = torch.float64, torch.int64
        assert labels_and_weights == [((size,), kind) for size in (2 * BATCH, BATCH) for kind in kinds]
        assert came(log, "out") == [((N,), torch.float64)]  # the energies

        kept = []
        log.clear()
        model.learn(model.empty_statistics(DEVICE), rows, y, ones, kept=kept)
        assert [shape[0] for shape, _ in came(log, "out")] == [2 * BATCH, BATCH, N]

        log.clear()
        model.scores(state.parameters, rows)
        assert came(log, "out") == [((size, 3), torch.float32) for size in (2 * BATCH, BATCH)]
        assert not came(log, "wait")


def test_sums_leave_the_device_once():
    X, y = pictures(40)
    with Simulated() as device:
        clf = classifier(DEVICE, trainable="norm").fit(X, y)
        model, rows = clf._private.state.model, list(clf._rows(X))
        device.log.clear()
        sums = sum_rows(model, rows, y, np.ones(40), np.arange(40), 1, Ranks())
        shapes = [tuple(tensor.shape) for tensor in sums.statistics.tensors().values()]
        assert [shape for shape, _ in came(device.log, "out")] == [(40,), *shapes]
    assert all(type(tensor) is torch.Tensor for tensor in sums.statistics.tensors().values())


@pytest.mark.filterwarnings("ignore:The best")
def test_what_reads_a_model_on_a_device(blobs):
    X, y = pictures()
    with Simulated():
        clf = classifier(DEVICE, keep="features").fit(X, y, sample_ids=[*range(N)])
        assert clf.find(X[3:4])[0][0]["sample_id"] == 3
        assert len(label_issues(clf, X, y)["indices"]) <= N
        rows = clf._adapter.model.backbone.spec.normalise(list(clf._rows(X)), torch.float32, DEVICE)
        with torch.no_grad():
            found = clf.to_module()(rows).cpu()
        np.testing.assert_allclose(found, clf.decision_function(X), rtol=1e-4, atol=1e-5)
        params = {"n_components": 8, "alphas": [0.1, 1.0], "batch_size": BATCH, "random_state": 0}
        search = FastNTKClassifierCV(trainable="norm", device=str(DEVICE), **params).fit(*blobs)
        scores, margins = search.decision_function(blobs[0]), shadow_margins(search, *blobs, n_models=2)
    expected = FastNTKClassifierCV(trainable="norm", **params).fit(*blobs)
    np.testing.assert_allclose(scores, expected.decision_function(blobs[0]), rtol=1e-10)
    np.testing.assert_array_equal(margins, shadow_margins(expected, *blobs, n_models=2))


@pytest.mark.parametrize("kept", [False, True])
def test_learned_on_the_cpu_and_forgotten_on_a_device(kept, tmp_path):
    """What is computed again there differs in its last bits; kept features are not computed again."""
    X, y = pictures()
    params = {"keep": "features" if kept else None, "backbone_has_seen": False}
    clf = classifier("cpu", **params).fit(X, y, sample_ids=[*range(N)])
    clf.save(tmp_path / "state")
    refit = classifier("cpu", **params).fit(X[5:], y[5:])
    with Simulated(rounds_up=True):
        there = FastNTKClassifier.load(tmp_path / "state", backbone=Net(), device=str(DEVICE))
        if kept:
            there.unlearn(sample_ids=[0, 1, 2]).unlearn(X[3:4]).rebuild()
        else:
            with pytest.warns(NumericalDriftWarning, match="differs"):
                there.unlearn(X[:4])
            there.rebuild(X[4:], y[4:])
        receipt = there.receipts_[0]
        assert (receipt["drift"] == 0) is receipt["exactness"]["exact"] is kept
        there.unlearn(X[4:5])
        assert there.receipts_[-1]["drift"] == 0
        assert there.receipts_[-1]["exactness"]["exact"]
        assert gap(there, refit) < (1e-6 if kept else 1e-3)
    assert kept or gap(there, refit) > 1e-6


def test_a_row_that_is_not_finite_is_named_within_its_block():
    X, y = pictures(30)
    X = X.astype(np.float32) / 255
    clf = classifier("cpu").fit(X, y)
    model, rows = clf._private.state.model, list(clf._rows(X))
    rows[13] = np.full_like(rows[13], np.nan)
    with pytest.raises(JacobianError, match="row 113"):
        model.learn(model.empty_statistics(), rows, y, np.ones(30), np.arange(100, 130))


PRECISIONS = {
    "all": BACKENDS,
    "cudnn": BACKENDS.cudnn,
    "products": BACKENDS.cuda.matmul,
    "convolutions": BACKENDS.cudnn.conv,
    "recurrent": BACKENDS.cudnn.rnn,
}


def flags():
    """Return what decides about kernels, and what the precisions become if a general one changes."""
    found = [BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic]
    found += [each.fp32_precision for each in PRECISIONS.values()]
    for owner in (BACKENDS, BACKENDS.cudnn):
        before = owner.fp32_precision
        for value in ("ieee", "tf32"):
            owner.fp32_precision = value
            found += [each.fp32_precision for each in PRECISIONS.values()]
        owner.fp32_precision = "none"
        if owner.fp32_precision != before:
            owner.fp32_precision = before
    return found


def are_exact():
    exact = all(PRECISIONS[name].fp32_precision == "ieee" for name in ("products", "convolutions"))
    return exact and BACKENDS.cudnn.deterministic and not BACKENDS.cudnn.benchmark


@contextmanager
def chosen(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, "none" if name == "fp32_precision" else before)


@pytest.mark.parametrize(
    "choice",
    [
        (BACKENDS.cudnn, "benchmark", True),
        (BACKENDS.cudnn, "deterministic", True),
        (BACKENDS, "fp32_precision", "tf32"),
        (BACKENDS.cudnn, "fp32_precision", "tf32"),
        (BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
        (BACKENDS.cuda.matmul, "allow_tf32", True),
    ],
    ids=["benchmark", "deterministic", "all", "cudnn", "products", "products, by the old name"],
)
def test_the_flags_of_the_process_come_back_as_they_were(choice):
    with chosen(*choice):
        before = flags()
        entered, leave = threading.Event(), threading.Event()

        def interrupted():
            with exact_kernels(CUDA), exact_kernels(CUDA):
                assert are_exact()
                nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2))
                raise KeyboardInterrupt

        def other():
            with exact_kernels(CUDA):
                entered.set()
                leave.wait(10)

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert flags() == before
        thread = threading.Thread(target=other)
        with exact_kernels(CUDA):
            thread.start()
            entered.wait(10)
        assert are_exact()  # the other thread is still within
        leave.set()
        thread.join()
        assert flags() == before
        with exact_kernels(torch.device("cpu")), exact_kernels(torch.device("mps")):
            assert flags() == before
