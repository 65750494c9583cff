"""Ranks of a process group (gloo) learn their shares and end with the model of one process."""

import multiprocessing
import socket

import numpy as np
import pytest
import ranks
import torch.distributed as dist

from fastntk_sk import share_rows
from fastntk_sk.distributed import Ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no process groups")
TWO = ["full", "pseudo", "ladder", "tuned", "any_seed", "different_rows", "broken", "lonely"]
TWO += ["new_class", "kept", "private_half", "refusals"]
IMPORTED = ["fastntk_sk.classifier", "pytest", "skorch", "timm", "torch._dynamo"]  # once for all ranks
THREE = ["full", "few", "kept"]


def start(folder, n_ranks, *whats):
    """Run functions of ranks.py in every rank; return exit codes and what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(IMPORTED)
    started = [
        forks.Process(target=ranks.main, args=(folder, rank, n_ranks, port, whats))
        for rank in range(n_ranks)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=240)
    printed = [(folder / f"printed-{rank}").read_text() for rank in range(n_ranks)]
    return [process.exitcode for process in started], printed


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    """What two ranks find, and what three find."""
    found = {}
    for n_ranks, whats in ((2, TWO), (3, THREE)):
        folder = tmp_path_factory.mktemp(f"{n_ranks} ranks")
        codes, printed = start(folder, n_ranks, *whats)
        assert codes == [0] * n_ranks, "\n".join(printed)
        for what in whats:
            found[n_ranks, what] = [np.load(folder / f"{what}-{rank}.npz") for rank in range(n_ranks)]
    return found


def close(found, expected):
    for name in ("readout", "displacement", "scores"):
        size = np.linalg.norm(expected[name])
        assert np.linalg.norm(found[name] - expected[name]) <= 1e-10 * size
    for name in ("learned", "forgotten"):
        assert found[name] == expected[name]


@pytest.mark.parametrize("key", [*((2, what) for what in TWO), *((3, what) for what in THREE)])
def test_ranks_end_with_the_model_of_one_process(of_ranks, key, tmp_path, monkeypatch):
    """61 rows are not divisible by 2 or 3; of 2 rows one of 3 ranks has none."""
    found, what = of_ranks[key], key[1]
    monkeypatch.chdir(tmp_path)
    for other in found[1:]:
        for name in other.files:
            np.testing.assert_array_equal(other[name], found[0][name])
    if what != "any_seed":
        close(found[0], ranks.facts(getattr(ranks, what)()))


def test_a_rank_that_dies(tmp_path):
    codes, printed = start(tmp_path, 2, "dies")
    assert codes == [3, 7], "\n".join(printed)


@pytest.mark.parametrize(("n", "size"), [(10, 1), (10, 3), (2, 4), (0, 2), (7, 7)])
def test_shares_are_a_partition(n, size):
    group, parts = Ranks(), []
    group.size = size
    for group.rank in range(size):
        parts.append(group.share(n))
    assert [row for part in parts for row in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_nothing_is_shared_without_a_process_group():
    with pytest.raises(RuntimeError, match="process group"), share_rows():
        pass
