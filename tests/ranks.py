"""What every rank of test_distributed.py runs: python ranks.py FOLDER WHAT ..., as torchrun would."""

import os
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastntk_sk import FastNTKClassifier, share_rows
from fastntk_sk.exceptions import DistributedError, StateMismatchError

draws = np.random.default_rng(0)
y = np.arange(61) % 3
X = draws.normal(size=(61, 4)) + 2 * np.eye(3, 4)[y]


SMALL = {"trainable": "norm", "random_state": 0, "n_components": 40}


def make(**changes):
    return FastNTKClassifier(**(SMALL | {"batch_size": 8} | changes))


def facts(clf):
    return {
        "readout": clf.readout_,
        "displacement": clf.displacement_,
        "scores": clf.decision_function(X),
        "learned": clf.n_samples_learned_,
        "receipts": [receipt["checksum"] for receipt in clf.receipts_],
    }


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
    """Fewer rows than ranks: some have none."""
    return make().fit(X[:3], y[:3])


def any_seed():
    return make(random_state=None).fit(X, y).unlearn(X[:5])


def tuned():
    return make(anchor="finetuned", max_epochs=2).fit(X, y).unlearn(X[:5])


def different_rows():
    if dist.is_initialized():
        with pytest.raises(StateMismatchError, match="Expected every rank to be called with the same"):
            make().fit(X, (y + dist.get_rank()) % 3)
        with pytest.raises(StateMismatchError, match="Expected every rank to be called with the same"):
            make().fit(X[:: 1 - 2 * dist.get_rank()], y)
        with pytest.raises(StateMismatchError, match="Expected every rank to be called with the same"):
            make(anchor=("finetuned", "pretrained")[dist.get_rank()]).fit(X, y)
        twice = make().fit(np.vstack([X, X]), np.r_[y, (y + 1) % 3])
        with pytest.raises(StateMismatchError, match="Expected every rank to be called with the same"):
            twice.unlearn(X[:3], (y[:3] + dist.get_rank()) % 3)
    return make().fit(X, y)


class Dying(FastNTKClassifier):
    """Rank 1 is killed in the middle of its pass."""

    def _progress(self, rows, what, total):
        for i, row in enumerate(rows):
            if dist.get_rank() == 1 and i == 300:
                os._exit(7)
            yield row


def many_rows():
    numbers = np.arange(1300)
    return np.random.default_rng(1).normal(size=(1300, 4)) + 2 * np.eye(3, 4)[numbers % 3], numbers % 3


def dies():
    started = time.monotonic()
    clf = Dying(**SMALL)
    with pytest.raises(DistributedError, match="rank"):
        clf.fit(*many_rows())
    assert time.monotonic() - started < 60
    assert not hasattr(clf, "classes_")
    os._exit(3)


class Broken(torch.utils.data.Dataset):
    """Rank 1 cannot read a row of its share."""

    def __len__(self):
        return 61

    def __getitem__(self, i):
        if i == 50:
            raise OSError("unreadable")
        return np.full((8, 8), i, dtype=np.uint8)


def broken():
    if dist.is_initialized():
        started = time.monotonic()
        clf = make(backbone="test_resnet", pretrained=False, image_size=16, trainable="head")
        with pytest.raises(DistributedError if dist.get_rank() == 0 else (OSError, ValueError)):
            clf.fit(Broken(), y)
        assert time.monotonic() - started < 20
    return make().fit(X, y)


def lonely():
    """Outside of share_rows a fit is nobody else's business, process group or not."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        make().fit(X[:30], y[:30]).unlearn(X[:5])
    return make().fit(X, y)


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    for what in sys.argv[2:]:
        with nullcontext() if what == "lonely" else share_rows():
            found = facts(globals()[what]())
        np.savez(folder / f"{what}-{dist.get_rank()}.npz", **found)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
