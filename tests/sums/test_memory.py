"""The memory gate: what it counts, what it takes for available, and how to override it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastntk_sk.exceptions import InsufficientMemoryError
from fastntk_sk.sums import memory

MEASURED = """
import ctypes, gc, warnings
import numpy as np
import torch
from fastntk_sk import FastNTKClassifier

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def wide(*widths):
    pairs = zip((8, *widths), widths)
    return torch.nn.Sequential(*(l for d in pairs for l in (torch.nn.Linear(*d), torch.nn.ReLU())))

def run(**params):
    y = np.arange(600) % 3
    X = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    clf = FastNTKClassifier(random_state=0, batch_size=16, **params).fit(X, y)
    return clf.unlearn(X[:5]).can_unlearn(X[5:9])["n_bytes"]

warnings.simplefilter("ignore")
tangents = {"trainable": "full", "alpha": 0.3}
run(**tangents, n_components=8)
run(backbone=wide(16), trainable="head")
for params in (
    {"backbone": wide(2500), "trainable": "head"},
    {"backbone": wide(2500), "trainable": "head", "alpha": 0.3},
    {"backbone": wide(2500, 16), "trainable": "ladder-gap", "n_components": 2500},
    tangents | {"n_components": 1500},
    tangents | {"n_components": 700, "kernel": "pseudo"},
):
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = status("VmRSS")
    print(run(**params), status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_is_what_a_fit_and_a_deletion_take():
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    pairs = [[int(number) for number in line.split()] for line in done.stdout.splitlines()]
    assert len(pairs) == 5
    for needed, measured in pairs:
        assert measured <= needed <= 2 * measured


def write(folder, **numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in numbers.items():
        (folder / name.replace("__", ".")).write_text(f"{number}\n")


def test_a_control_group_of_version_2_and_its_parents_limit(tmp_path):
    assert memory.cgroup_memory(str(tmp_path)) == sys.maxsize
    write(tmp_path / "proc/self", cgroup="0::/outer/inner")
    mount = tmp_path / "sys/fs/cgroup"
    stat = {"memory__stat": "anon 5\ninactive_file 30"}
    write(mount / "outer/inner", memory__max="max", memory__current=700, **stat)
    assert memory.cgroup_memory(str(tmp_path)) == sys.maxsize
    write(mount / "outer", memory__max=1000, memory__current=800, **stat)
    assert memory.cgroup_memory(str(tmp_path)) == 230
    write(mount / "outer/inner", memory__max=720)
    assert memory.cgroup_memory(str(tmp_path)) == 50


def test_a_control_group_of_version_1_seen_from_its_container(tmp_path):
    write(tmp_path / "proc/self", cgroup="5:cpu:/\n4:memory:/docker/of-the-host\n0::/")
    write(
        tmp_path / "sys/fs/cgroup/memory",
        memory__limit_in_bytes=1000,
        memory__usage_in_bytes=1500,
        memory__stat="inactive_file 1\ntotal_inactive_file 600",
    )
    assert memory.cgroup_memory(str(tmp_path)) == 100


def test_the_environment_overrides_what_is_measured(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(InsufficientMemoryError, match=r"2,000 bytes.*1,000.*FASTNTK_SK_MEMORY_LIMIT"):
        memory.require(2000, "The sums need", "Take fewer.")
    for unlimited in ("2000", "0", "none", "None"):
        monkeypatch.setenv(memory.LIMIT, unlimited)
        memory.require(2000, "The sums need", "Take fewer.")
    monkeypatch.setenv(memory.LIMIT, "1999")
    with pytest.raises(InsufficientMemoryError, match="1,999"):
        memory.require(2000, "The sums need", "Take fewer.")
    monkeypatch.setenv(memory.LIMIT, "2 GB")
    with pytest.raises(ValueError, match=memory.LIMIT):
        memory.available_memory()
