"""kill -9 while an estimator is being saved: the folder holds the old state or the new, never half."""

import base64
import copy
import json
import multiprocessing
import os
import re
import select
import shutil
import signal
import stat
import traceback
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hostile import tiny
from tqdm import tqdm

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import PrivacyWarning, StateFormatError
from fastntk_sk.publishing import files

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

KEY = base64.urlsafe_b64encode(bytes(32))
PUBLIC = {"README.md", "adapter.safetensors", "config.json"}
# how the old state was written, and how the new one is
KINDS = {
    "state": ("plain", "plain"),
    "encrypting": ("plain", "encrypted"),
    "adapter": ("public", "public"),
    "first": (None, "plain"),
}
CALLS = ("open", "fchmod", "fsync", "close", "replace", "unlink", "mkdir")
# the kills that leave different files behind: the others leave what one of these does, or an empty file
TELLING = {("write", "middle"), ("replace", "after"), ("unlink", "after")}
MEASURED = {"time", "seconds", "threads", "checksum"}

draws = np.random.default_rng(0)
y = np.arange(24) % 3
X = (draws.normal(size=(24, 3)) + 2 * np.eye(3)[y]).astype(np.float32)
EARLIER, FORGOTTEN, LATER = slice(0, 1), slice(1, 4), slice(4, 6)


@pytest.fixture(scope="module")
def pair():
    """An estimator, and the same without three rows."""
    old = FastNTKClassifier(backbone=tiny(), n_components=5, batch_size=4, random_state=0)
    old.fit(X, y, sample_ids=range(24)).unlearn(X[EARLIER])
    return old, copy.deepcopy(old).unlearn(X[FORGOTTEN])


def write(way, clf, folder):
    if way == "public":
        clf.save_pretrained(folder)
    else:
        clf.save(folder, key=KEY if way == "encrypted" else None)


def run(action):
    """Run an action in a forked child. Return whether it was killed."""
    alive, signals = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of torch's threads, which the child does without
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            os.write(signals, b"x")
            action()
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(signals)
    os.read(alive, 1)
    ended, _, _ = select.select([alive], [], [], 60)
    os.kill(child, signal.SIGKILL)
    os.close(alive)
    _, status = os.waitpid(child, 0)
    assert ended, "the child hangs"
    assert status in (0, signal.SIGKILL), "the child failed"
    return bool(status)


class Steps:
    """Counts calls that reach the file system, and kills its process at one of them."""

    def __init__(self, at=None):
        self.names, self.at = [], at

    def reach(self, index, moment):
        if (index, moment) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, name, call):
        def step(*args, **kwargs):
            self.names.append(name)
            index = len(self.names) - 1
            try:
                return call(*args, **kwargs)
            finally:
                self.reach(index, "after")

        return step

    def install(self, patch):
        for name in CALLS:
            patch.setattr(os, name, self.counted(name, getattr(os, name)))
        fdopen = os.fdopen
        patch.setattr(os, "fdopen", lambda *args: File(self, fdopen(*args)))


class File:
    """A file whose writes are steps that can be stopped half-way."""

    def __init__(self, steps, file):
        self.steps, self.file = steps, file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.steps.names.append("write")
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.steps.reach(len(self.steps.names) - 1, "middle")
        self.file.write(data[half:])


def parameters(clf):
    return [clf.readout_.tobytes(), clf.displacement_.tobytes(), clf.n_samples_forgotten_]


def look(folder, after):
    """Return what must be that of one of the two states; receipts without what is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)  # an interrupted save is told
        if after == "public":
            clf = FastNTKClassifier.from_pretrained(folder, backbone=tiny())
            return [clf.decision_function(X).tobytes(), *parameters(clf)]
        try:
            key = KEY if ".fernet" in (folder / "manifest.json").read_text() else None
            clf = FastNTKClassifier.load(folder, backbone=tiny(), key=key)
        except FileNotFoundError:
            with pytest.raises(StateFormatError, match="missing"):
                FastNTKClassifier.load(folder, backbone=tiny())
            return None
    receipts = [{k: v for k, v in r.items() if k not in {*MEASURED, "previous"}} for r in clf.receipts_]
    rows = [clf.can_unlearn(X[rows])["n_rows"] for rows in (EARLIER, FORGOTTEN, LATER)]
    return [clf.decision_function(X).tobytes(), receipts, rows, *parameters(clf.unlearn(X[LATER]))]


def is_one_state(folder, after):
    """Return whether the files are those that one save writes."""
    names = {file.name for file in folder.glob("*")}
    if after == "public" or "manifest.json" not in names:
        return names == (PUBLIC if after == "public" else set())
    manifest = json.loads((folder / "manifest.json").read_text())
    return names == {"manifest.json", *manifest["files"].values()}


class Trials:
    """Kills saves of the new state over the old, and looks at what is left."""

    def __init__(self, kind, pair, tmp_path):
        (self.before, self.after), (self.old, self.new) = KINDS[kind], pair
        self.start, self.folder = tmp_path / "old", tmp_path / "trial"
        if self.before:
            write(self.before, self.old, self.start)
        write(self.after, self.new, tmp_path / "new")
        self.expected = [look(tmp_path / name, self.after) for name in ("old", "new")]
        assert self.expected[0] != self.expected[1]
        self.seen = Counter()

    def reset(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.before:
            shutil.copytree(self.start, self.folder)

    def __call__(self, action):
        """Kill one save, judge the folder, and save again."""
        self.reset()
        assert run(action)
        names = [file.name for file in self.folder.glob("*")]
        outcome = self.expected.index(look(self.folder, self.after))
        self.seen[outcome] += 1
        self.seen["partial"] += any(re.fullmatch(files.PARTIAL, name) for name in names)
        if self.after != "public":
            assert all(stat.S_IMODE((self.folder / name).stat().st_mode) == 0o600 for name in names)
        write(self.after, self.new, self.folder)
        assert is_one_state(self.folder, self.after)
        assert look(self.folder, self.after) == self.expected[1]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_each_step(pair, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a kill loses nothing that was written
    trials, steps = Trials(kind, pair, tmp_path), Steps()
    trials.reset()
    with monkeypatch.context() as patch:
        steps.install(patch)
        write(trials.after, trials.new, trials.folder)
    # every file is written, made durable and put in place: no write passes by the steps
    n_files = len(list(trials.folder.glob("*")))
    writing = [name for name in steps.names if name in ("write", "fsync", "replace")]
    new_folder = [] if trials.before else ["fsync"]
    assert writing == new_folder + ["write", "fsync", "replace", "fsync"] * n_files
    for index, name in enumerate(steps.names):
        for moment in ("middle", "after"):

            def save(at=(index, moment)):
                Steps(at).install(pytest.MonkeyPatch())
                write(trials.after, trials.new, trials.folder)

            if (name, moment) in TELLING:
                trials(save)
    assert min(trials.seen[0], trials.seen[1]) >= 1
    assert trials.seen["partial"] >= n_files


def test_killed_while_it_holds_the_lock_of_progress_bars(pair, monkeypatch):
    """Forked processes share that lock: who shows no bars does not wait for it."""
    lock = multiprocessing.get_context("fork").RLock()
    monkeypatch.setattr(tqdm, "_lock", lock, raising=False)

    def die():
        lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    assert run(die)
    work = copy.deepcopy(pair[0])
    assert not run(lambda: work.fit(X, y).unlearn(X[FORGOTTEN]).predict(X))
