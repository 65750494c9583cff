"""kill -9 while an estimator is being saved: the folder holds the old state or the new, never half."""

import base64
import copy
import json
import multiprocessing
import os
import random
import re
import select
import shutil
import signal
import stat
import statistics
import time
import traceback
import warnings
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hostile import tiny
from tqdm import tqdm

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import PrivacyWarning, StateFormatError
from fastntk_sk.publishing import files

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
slow = pytest.mark.slow

KEY = base64.urlsafe_b64encode(bytes(32))
PUBLIC = {"README.md", "adapter.safetensors", "config.json"}
# how the old state was written, and how the new one is
KINDS = {
    "state": ("plain", "plain"),
    "encrypting": ("plain", "encrypted"),
    "adapter": ("public", "public"),
    "first": (None, "plain"),
    "unlearn": ("plain", "plain"),  # the deletion too is done in the process that is killed
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


def run(action, limit=None):
    """Run an action in a forked child; kill it after some seconds. Return for how long it ran, and how
    it ended: "complete" or "killed"."""
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
    started = time.perf_counter()
    ended, _, _ = select.select([alive], [], [], 60 if limit is None else limit)
    seconds = time.perf_counter() - started
    os.kill(child, signal.SIGKILL)
    os.close(alive)
    _, status = os.waitpid(child, 0)
    assert ended or limit is not None, "the child hangs"
    assert status in (0, signal.SIGKILL), "the child failed"
    return seconds, "killed" if status else "complete"


class Steps:
    """Counts calls that reach the file system, and kills its process at one of them."""

    def __init__(self, at=None):
        self.names, self.at = [], at

    def begin(self, name):
        self.names.append(name)
        index = len(self.names) - 1
        self.reach(index, "before")
        return index

    def reach(self, index, moment):
        if (index, moment) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, name, call):
        def step(*args, **kwargs):
            index = self.begin(name)
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
        index = self.steps.begin("write")
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.steps.reach(index, "middle")
        self.file.write(data[half:])
        self.steps.reach(index, "after")


class Trials:
    """Kills saves of the new state over the old, and looks at what is left."""

    def __init__(self, kind, pair, tmp_path):
        self.kind, (self.old, self.new) = kind, pair
        self.before, self.after = KINDS[kind]
        self.tmp_path, self.folder = tmp_path, tmp_path / "trial"
        self.seen = Counter()
        if self.before:
            write(self.before, self.old, tmp_path / "old")
        write(self.after, self.new, tmp_path / "new")
        self.expected = {name: self.look(tmp_path / name) for name in ("old", "new")}
        assert self.expected["old"] != self.expected["new"]

    def save(self):
        if self.kind == "unlearn":
            self.old.unlearn(X[FORGOTTEN])
        write(self.after, self.old if self.kind == "unlearn" else self.new, self.folder)

    def look(self, folder):
        """Return what must be bitwise that of one of the two states."""
        if not self.before and not (folder / "manifest.json").exists():
            with pytest.raises(StateFormatError, match=r"No manifest.json in .*: it is missing"):
                FastNTKClassifier.load(folder, backbone=tiny())
            return None
        if self.after == "public":
            with self.told_apart(folder):
                clf = FastNTKClassifier.from_pretrained(folder, backbone=tiny())
        else:
            whole = self.is_one_state(folder)
            left = nullcontext() if whole else pytest.warns(PrivacyWarning, match="was interrupted")
            manifest = (folder / "manifest.json").read_text()
            key = KEY if ".fernet" in manifest else None
            with left:
                clf = FastNTKClassifier.load(folder, backbone=tiny(), key=key)
        measured = MEASURED if self.kind == "unlearn" else ()
        receipts = [{k: v for k, v in r.items() if k not in measured} for r in clf.receipts_]
        found = [clf.decision_function(X).tobytes(), *self.parameters(clf), receipts]
        if self.after != "public":
            found.append([clf.can_unlearn(X[rows])["n_rows"] for rows in (EARLIER, FORGOTTEN, LATER)])
            found += self.parameters(clf.unlearn(X[LATER]))
        return found

    def told_apart(self, folder):
        """Expect a warning where config.json is of another state than the adapter."""
        states = [
            {name for name in ("old", "new") if (self.tmp_path / name / file).read_bytes() == data}
            for file in ("adapter.safetensors", "config.json")
            for data in [(folder / file).read_bytes()]
        ]
        same = states[0] == states[1]
        return nullcontext() if same else pytest.warns(PrivacyWarning, match="another model")

    @staticmethod
    def parameters(clf):
        counts = (clf.n_samples_learned_, clf.n_samples_forgotten_)
        return [clf.readout_.tobytes(), clf.displacement_.tobytes(), counts]

    def trial(self, action, limit=None):
        """Kill one save, judge the folder, and save again; return how the save ended."""
        self.reset()
        _, end = run(action, limit)
        names = self.names()
        found = self.look(self.folder)
        outcomes = [name for name, facts in self.expected.items() if facts == found]
        assert outcomes, f"neither the old state nor the new: {sorted(names)}"
        assert end == "killed" or outcomes == ["new"]
        self.seen.update(["trials", end, *outcomes])
        self.seen["partial"] += any(re.fullmatch(files.PARTIAL, name) for name in names)
        for name in names:
            self.check(name)
        write(self.after, self.new, self.folder)
        assert self.is_one_state(self.folder)
        assert self.look(self.folder) == self.expected["new"]
        return end

    def reset(self):
        """Put the old state into the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.before:
            shutil.copytree(self.tmp_path / "old", self.folder)

    def names(self):
        return {file.name for file in self.folder.glob("*")}

    def is_one_state(self, folder):
        """Return whether the files are those that one save writes."""
        names = {file.name for file in folder.glob("*")}
        if self.after == "public":
            return names == PUBLIC
        if "manifest.json" not in names:
            return not names
        manifest = json.loads((folder / "manifest.json").read_text())
        return names == {"manifest.json", *manifest["files"].values()}

    def check(self, name):
        """Check a file that need not have been loaded."""
        file = self.folder / name
        if self.after != "public":
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        elif not re.fullmatch(files.PARTIAL, name):
            known = [(self.tmp_path / state / name).read_bytes() for state in ("old", "new")]
            assert file.read_bytes() in known


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=slow)], ids=["telling", "every"])
@pytest.mark.parametrize("kind", ["state", "encrypting", "adapter", "first"])
def test_killed_at_each_step(pair, tmp_path, monkeypatch, kind, every):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a kill loses nothing that was written
    trials = Trials(kind, pair, tmp_path)
    trials.reset()
    with monkeypatch.context() as patch:
        steps = Steps()
        steps.install(patch)
        trials.save()
    # every file is written, made durable and put in place: no write passes by the steps
    n_files = len(trials.names())
    writing = [name for name in steps.names if name in ("write", "fsync", "replace")]
    new_folder = [] if trials.before else ["fsync"]
    assert writing == new_folder + ["write", "fsync", "replace", "fsync"] * n_files
    for index, name in enumerate(steps.names):
        for moment in ("before", "middle", "after") if name == "write" else ("before", "after"):

            def save(at=(index, moment)):
                Steps(at).install(pytest.MonkeyPatch())
                trials.save()

            if every or (name, moment) in TELLING:
                assert trials.trial(save) == "killed"
    assert min(trials.seen["old"], trials.seen["new"]) >= 1
    assert trials.seen["partial"] >= n_files


@pytest.mark.parametrize("n_trials", [5, pytest.param(200, marks=slow)])
@pytest.mark.parametrize("kind", ["adapter", "unlearn"])
def test_killed_at_random(pair, tmp_path, kind, n_trials):
    trials = Trials(kind, pair, tmp_path)
    durations = []
    for _ in range(3):
        trials.reset()
        durations.append(run(trials.save)[0])
    whole = statistics.median(durations)
    moments = random.Random(0)
    for _ in range(n_trials):
        trials.trial(trials.save, limit=moments.uniform(0, 1.1 * whole))
    assert trials.seen["old"] + trials.seen["new"] == trials.seen["trials"] == n_trials


def test_killed_while_it_holds_the_lock_of_progress_bars(pair, monkeypatch):
    """Forked processes share that lock: who shows no bars does not wait for it."""
    lock = multiprocessing.get_context("fork").RLock()
    monkeypatch.setattr(tqdm, "_lock", lock, raising=False)

    def die():
        lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    assert run(die)[1] == "killed"
    work = copy.deepcopy(pair[0])
    assert run(lambda: work.fit(X, y).unlearn(X[FORGOTTEN]).predict(X))[1] == "complete"
