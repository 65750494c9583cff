"""Freed memory stays with the process between batches and goes back to the system afterwards."""

import subprocess
import sys

import pytest

from fastntk_sk.tangents import heap

FAULTS = """
import resource, sys, torch
from contextlib import nullcontext
from fastntk_sk.tangents.heap import kept_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with kept_heap() if sys.argv[1] == "kept" else nullcontext():
    faults()
    print(faults())
"""


@pytest.mark.slow
def test_a_batch_takes_the_pages_of_the_last():
    if heap._glibc() is None:
        pytest.skip("another allocator, or one that the environment configures")
    plain, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("plain", "kept")
    )
    assert kept < plain / 5


def test_the_environment_wins(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert heap._glibc() is None
    with heap.kept_heap():
        assert heap._passes == 0


def test_passes_within_passes_end_with_the_outermost():
    if heap._glibc() is None:
        pytest.skip("another allocator, or one that the environment configures")
    before = heap._passes
    with heap.kept_heap(), heap.kept_heap():
        assert heap._passes == before + 2
    assert heap._passes == before
