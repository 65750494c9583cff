"""A long pass that is interrupted goes on where it was, and ends with the same model."""

import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from test_classifier import parameters

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import StateFormatError, StateMismatchError
from fastntk_sk.store import checkpoints


class Interrupted(Exception):
    """Where a test stops a fit."""


class Stopping(FastNTKClassifier):
    """Stops after some rows of the learning pass, and notes how many it has read."""

    def _progress(self, rows, what, total):
        for i, row in enumerate(rows):
            if i == getattr(self, "stop_after", None):
                raise Interrupted
            self.n_read = i + 1
            yield row


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)


@pytest.fixture
def problem():
    """More rows than are added to the statistics at once."""
    draws = np.random.default_rng(0)
    y = np.arange(700) % 3
    return draws.normal(size=(700, 4)) + 2 * np.eye(3, 4)[y], y


def make(**changes):
    return Stopping(**({"trainable": "norm", "random_state": 0, "n_components": 40} | changes))


def interrupted(folder, problem, after=600, **changes):
    clf = make(**changes)
    clf.stop_after = after
    with pytest.raises(Interrupted):
        clf.fit(*problem, checkpoint_dir=folder)
    assert not hasattr(clf, "classes_")
    return clf


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kernel": "pseudo"},
        {"trainable": "ladder", "alpha": "auto"},
        {"random_state": None},
        {"anchor": "finetuned", "max_epochs": 1},
    ],
)
def test_it_goes_on_and_ends_the_same(problem, tmp_path, changes):
    X, y = problem
    folder = tmp_path / "sums"
    interrupted(folder, problem, **changes)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    seed = checkpoints.Checkpoint(folder).found.seed
    clf = make(**changes).fit(X, y, checkpoint_dir=folder)
    assert clf.n_read == 700 - 512
    whole = make(
        **(changes | ({"random_state": 0} if changes.get("random_state", 0) is not None else {}))
    )
    if changes.get("random_state", 0) is None:
        assert clf._state.frozen.seed == seed
    else:
        assert torch.equal(parameters(clf), parameters(whole.fit(X, y)))
    assert not folder.exists()
    assert clf.unlearn(X[:10]).n_samples_learned_ == 690  # the ledger knows rows of both runs
    assert clf.unlearn(X[650:660]).n_samples_learned_ == 680


def test_a_second_interruption(problem, tmp_path):
    interrupted(tmp_path, problem, after=300)
    interrupted(tmp_path, problem, after=300)
    clf = make().fit(*problem, checkpoint_dir=tmp_path)
    assert clf.n_read == 700 - 512
    assert torch.equal(parameters(clf), parameters(make().fit(*problem)))


def test_a_checkpoint_of_another_fit_is_refused(problem, tmp_path):
    X, y = problem
    interrupted(tmp_path, problem)
    others = [
        (make(), (X, (y + 1) % 3)),
        (make(), (X[:650], y[:650])),
        (make(n_components=30), (X, y)),
        (make(batch_size=16), (X, y)),
        (make(kernel="pseudo"), (X, y)),
        (make(trainable="ladder"), (X, y)),
    ]
    others += [
        (make(random_state=1), (X, y)),
        (make(), (X[::-1], y[::-1])),
        (make(), (X + 1, y)),
    ]
    swapped = np.arange(700)
    swapped[[0, 3]] = [3, 0]  # of the same label
    others.append((make(), (X[swapped], y)))
    for clf, rows in others:
        with pytest.raises(StateMismatchError, match="is of another fit"):
            clf.fit(*rows, checkpoint_dir=tmp_path)
    with pytest.raises(StateMismatchError, match="is of another fit"):
        make().fit(X, y, sample_weight=np.linspace(1, 2, 700), checkpoint_dir=tmp_path)
    with pytest.raises(StateMismatchError, match="is of another fit"):
        make().fit(X, y, sample_ids=np.arange(700), checkpoint_dir=tmp_path)
    make().fit(X, y, checkpoint_dir=tmp_path)


def test_files_of_another_number_of_ranks_are_not_left_behind(problem, tmp_path):
    interrupted(tmp_path, problem)
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / "checkpoint-1-of-2.safetensors")
    with pytest.raises(StateMismatchError, match="Expected checkpoints of 1 rank"):
        make().fit(*problem, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other"])
def test_a_damaged_checkpoint_is_a_named_error(problem, tmp_path, damage):
    interrupted(tmp_path, problem)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[200] ^= 4
    contents = {"flip": bytes(data), "truncate": bytes(data[:-9]), "empty": b"", "other": b"x" * 100}
    file.write_bytes(contents[damage])
    with pytest.raises(StateFormatError):
        make().fit(*problem, checkpoint_dir=tmp_path)


def test_files_of_others_are_left_alone(problem, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    interrupted(tmp_path, problem)
    make().fit(*problem, checkpoint_dir=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_is_written_between_checkpoints(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_SECONDS", 1e9)
    interrupted(tmp_path / "sums", problem)
    assert not (tmp_path / "sums").exists()


CODE = """
import sys, time
import numpy as np
from fastntk_sk import FastNTKClassifier
from fastntk_sk.store import checkpoints
checkpoints._SECONDS = 0.0
class Slow(FastNTKClassifier):
    def _progress(self, rows, what, total):
        print(total, flush=True)
        for row in rows:
            time.sleep(float(sys.argv[2]))
            yield row
X = np.random.default_rng(0).normal(size=(700, 4))
clf = Slow(random_state=0, n_components=40).fit(X, np.arange(700) % 3, checkpoint_dir=sys.argv[1])
np.save("readout.npy", clf.readout_)
"""


@pytest.mark.slow
def test_kill_9_and_run_again(tmp_path):
    def run(folder, pause):
        command = [sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path / folder), str(pause)]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    with run("sums", 0.005) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "sums").glob("checkpoint*")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    with run("sums", 0) as again:
        out, _ = again.communicate()
    assert again.returncode == 0
    assert int(out) < 700
    resumed = np.load(tmp_path / "readout.npy")
    with run("others", 0) as other:
        other.communicate()
    np.testing.assert_array_equal(resumed, np.load(tmp_path / "readout.npy"))
