"""What every rank of test_distributed.py runs."""

import os
import pickle
import time
import warnings
from contextlib import nullcontext
from contextvars import Context
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastntk_sk import FastNTKClassifier, share_rows
from fastntk_sk.exceptions import (
    DistributedError,
    ForgetsEverythingError,
    HeavyRowError,
    NoFeaturesError,
    NoPrivateStateError,
    PictureError,
    StateMismatchError,
    UnknownSampleError,
)

draws = np.random.default_rng(0)
y = np.arange(61) % 3
X = draws.normal(size=(61, 4)) + 2 * np.eye(3, 4)[y]


def make(**changes):
    settings = {"trainable": "norm", "random_state": 0, "n_components": 40, "batch_size": 8}
    return FastNTKClassifier(**(settings | changes))


def facts(clf):
    return {
        "readout": clf.readout_,
        "displacement": clf.displacement_,
        "scores": clf.decision_function(X),
        "learned": clf.n_samples_learned_,
        "forgotten": clf.n_samples_forgotten_,
    }


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def full(**changes):
    clf = make(**changes).fit(X, y, sample_ids=range(61))
    clf.unlearn(X[:7]).unlearn(X[20:22])
    clf.partial_fit(X[:2], y[:2])
    return clf.rebuild(np.vstack([X[7:20], X[22:], X[:2]]))


def pseudo():
    return full(kernel="pseudo")


def ladder():
    return full(trainable="ladder", alpha="auto")


def few():
    """Fewer rows than ranks: one has none."""
    return make().fit(X[:2], y[:2])


def new_class():
    """A class that comes later, labels that were wrong, and a state that rank 0 alone has changed."""
    clf = make(trainable="ladder").fit(X[:30], y[:30] % 2, sample_ids=range(30))
    clf.partial_fit(X[30:], y[30:])
    clf.rectify(X[:30], y[:30])
    if rank() == 0:
        Context().run(clf.unlearn, X[:1])
    return clf.unlearn(X[1:4])


def kept():
    """Features are kept, and forgotten without any row; what was forgotten is learned again."""
    names = np.array([f"person {i % 7}" for i in range(61)])
    clf = make(trainable="ladder", keep="features").fit(X, y, sample_ids=names)
    hers = names == "person 1"
    clf.unlearn(sample_ids=["person 1"]).partial_fit(X[hers], y[hers])
    clf.rebuild(np.vstack([X[~hers], X[hers]])).unlearn(X[:2]).rebuild()
    if rank() == 0:
        assert clf.find(X[2:3])[0][0]["sample_id"] == "person 2"
    return clf


def private_half():
    """Rank 0 holds it; the others what predicts and takes part, even where they had loaded all of it."""
    names = [f"person {i}" for i in range(61)]
    clf = make(trainable="ladder", keep="features").fit(X, y, sample_ids=names)
    path = Path("state.fastntk")
    if rank() == 0:
        clf.save(path, overwrite=True)
    if dist.is_initialized():
        dist.barrier()
    loaded = FastNTKClassifier.load(path).unlearn(X[:3])
    for each in (clf, loaded) if rank() else ():
        assert each.receipts_ == []
        assert not hasattr(each, "alpha_")
        for call in (
            lambda each=each: each.save("another.fastntk"),
            lambda each=each: each.find(X[5:6]),
            lambda each=each: each.export_receipts("receipts"),
        ):
            with pytest.raises(NoPrivateStateError, match="rank 0"):
                call()
        with pytest.raises(NoPrivateStateError, match="rank 0"):
            Context().run(each.unlearn, X[5:6])
    for each in (clf, loaded):
        assert (b"person 7" in pickle.dumps(each)) == (rank() == 0)
    assert len(loaded.receipts_) == (rank() == 0)
    return loaded


def refusals():
    """What rank 0 finds wrong is the same error everywhere, and nothing has changed."""
    clf = make().fit(X[:60], y[:60])
    before = clf.decision_function(X)
    for error, call in (
        (UnknownSampleError, lambda: clf.unlearn(np.vstack([X[:2], X[60:]]))),
        (ForgetsEverythingError, lambda: clf.unlearn(X[:60])),
        (StateMismatchError, lambda: clf.rebuild(X[:50])),
        (NoFeaturesError, lambda: clf.rebuild()),
        (ValueError, lambda: clf.rectify(X[:1], ["none such"])),
        (HeavyRowError, lambda: clf.partial_fit(X[:3], y[:3], [1, 1, 1e14])),
    ):
        with pytest.raises(error) as raised:
            call()
        if error in (UnknownSampleError, HeavyRowError):
            assert raised.value.indices == [2]
        np.testing.assert_array_equal(clf.decision_function(X), before)
    return clf.unlearn(X[:5])


def any_seed():
    return make(random_state=None).fit(X, y).unlearn(X[:5])


def tuned():
    return make(anchor="finetuned", max_epochs=2).fit(X, y).unlearn(X[:5])


def different_rows():
    if dist.is_initialized():
        rank = dist.get_rank()
        twice = make().fit(np.vstack([X, X]), np.r_[y, (y + 1) % 3])
        for call in (
            lambda: make().fit(X, (y + rank) % 3),
            lambda: make().fit(X[:: 1 - 2 * rank], y),
            lambda: make(anchor=("finetuned", "pretrained")[rank]).fit(X, y),
            lambda: twice.unlearn(X[:3], (y[:3] + rank) % 3),
        ):
            with pytest.raises(StateMismatchError, match="every rank"):
                call()
    return make().fit(X, y)


class Pictures(torch.utils.data.Dataset):
    """One row, by default of the second rank's share, cannot be read."""

    def __init__(self, fail, row=50):
        self.fail, self.row = fail, row

    def __len__(self):
        return 61

    def __getitem__(self, i):
        if i == self.row:
            self.fail()
        return np.full((8, 8), i, dtype=np.uint8)


def of_pictures():
    return make(backbone="test_resnet", pretrained=False, image_size=16, trainable="head")


def die():
    if rank():
        os._exit(7)


def dies():
    """A rank is lost in a deletion: nothing has changed in the one that is left."""
    clf = of_pictures().fit(Pictures(int), y)
    before, started = clf.predict_proba(Pictures(int)), time.monotonic()
    with pytest.raises(DistributedError, match="rank"):
        clf.unlearn(torch.utils.data.Subset(Pictures(die), [3, 50]))
    assert time.monotonic() - started < 60
    np.testing.assert_array_equal(clf.predict_proba(Pictures(int)), before)
    assert (clf.n_samples_learned_, len(clf.receipts_)) == (61, 0)
    os._exit(3)


def be_unreadable():
    raise OSError("unreadable")


def broken():
    if dist.is_initialized():
        started = time.monotonic()
        with pytest.raises(PictureError, match="10"):
            of_pictures().fit(Pictures(be_unreadable, 10), y)
        with pytest.raises(PictureError if rank() else DistributedError):
            of_pictures().fit(Pictures(be_unreadable, 50), y)
        assert time.monotonic() - started < 20
    return make().fit(X, y)


def lonely():
    """Outside of share_rows a fit is nobody else's business, process group or not."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        make().fit(X[:30], y[:30]).unlearn(X[:5])
    return make().fit(X, y)


def main(folder, rank, n_ranks, port, whats):
    """Be one rank, as torchrun would start it: run what is asked, and keep what comes out."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(n_ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(folder)
    with open(f"printed-{rank}", "w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    for what in whats:
        with nullcontext() if what == "lonely" else share_rows():
            found = facts(globals()[what]())
        np.savez(f"{what}-{rank}.npz", **found)
    dist.barrier()
    dist.destroy_process_group()
