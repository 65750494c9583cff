"""Predictions from many threads are those of one, while another thread forgets and learns."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from cases import SharedWeight, Transformer

from fastntk_sk.backbones.inputs import Rows
from fastntk_sk.settings import Settings
from fastntk_sk.sums.ridge import solve
from fastntk_sk.tangents.linearize import linearize, linearize_at
from fastntk_sk.tangents.threads import own_thread

RANDOM = np.random.default_rng(0)
VECTORS, LABELS = RANDOM.normal(size=(24, 4)), np.arange(24) % 3
PICTURES = RANDOM.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


def vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)


def cnn():
    return timm.create_model("test_resnet", num_classes=0)


TUNED = {"anchor": "finetuned", "predict_with": "network"}
CASES = {
    "ladder": (cnn, "ladder", {}),
    "ladder of a ViT beside its norms": (vit, ("ladder", "norm"), {}),
    "head": (cnn, "head", {}),
    "norm, linear": (cnn, "norm", {}),
    "norm, network": (cnn, "norm", {"predict_with": "network"}),
    "norm, fine-tuned, network": (cnn, "norm", TUNED),
    "norm, fine-tuned, linear": (cnn, "norm", {"anchor": "finetuned"}),
    "norm, pseudo": (cnn, "norm", {"kernel": "pseudo"}),
    "prompts": (vit, "prompt", {}),
    "prompts, fine-tuned": (vit, "prompt", TUNED),
    "LoRA, fine-tuned": (vit, "lora", TUNED),
    "whole network": (SharedWeight, "full", {}),
    "whole network, pseudo": (SharedWeight, "full", {"kernel": "pseudo"}),
    "pattern": (SharedWeight, "layer.*", {}),
    "torch's transformer": (Transformer, "norm", {}),
}


def linearized(make, trainable, **changes):
    """Return a model and its rows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
    X = VECTORS if make in (SharedWeight, Transformer) else PICTURES
    settings = {
        "seed": 0,
        "n_classes": 3,
        "n_features": VECTORS.shape[1] if X is VECTORS else None,
        "backbone": None,
        "trainable": trainable,
        "anchor": "pretrained",
        "kernel": "full",
        "n_directions": 2,
        "n_components": 10,
        "n_prompts": 2,
        "lora_rank": 2,
        "image_size": (32, 32),
        "pretrained": True,
        "batch_size": 8,
        "precision": "float32",
        "device": "cpu",
        "alpha": 0.1,
        "tangent_scale": 1.0,
        "target_scale": 1.0,
        "predict_with": "linear",
        "backbone_has_seen": False,
        "keep": None,
        "augment": None,
        "head": None,
        "searched_by": (),
        "temperature": None,
    }
    model = linearize(net, Settings(**settings | changes))
    if changes.get("anchor") == "finetuned":
        draws = torch.Generator().manual_seed(0)
        moved = torch.randn(model.projection.k, generator=draws) / 100
        model = linearize_at(model, moved, torch.randn(model.directions.shape, generator=draws) / 10)
    return model, list(Rows(X, model.backbone.spec))


def solved(model, statistics):
    found = solve(statistics, alpha=0.1, tangent_scale=1.0, target_scale=1.0, centre=model.centre())
    return model.publish(found.W, found.z)


@pytest.fixture
def one_thread():
    """Torch's threads of every thread, so that cores are not shared by many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
def test_threads_predict_what_one_predicts_while_another_forgets(case, one_thread):
    make, trainable, changes = CASES[case]
    model, rows = linearized(make, trainable, **changes)
    statistics, ones = model.empty_statistics(), np.ones(24)
    model.learn(statistics, rows, LABELS, ones)
    parameters = solved(model, statistics)
    expected = model.scores(parameters, rows)
    left = statistics.copy()
    model.learn(left, rows[:9], LABELS[:9], -ones[:9])
    alone, done = solved(model, left).W, threading.Event()

    def predict(_):
        found = [model.scores(parameters, rows)]
        while not done.is_set():
            found.append(model.scores(parameters, rows))
        return found

    with ThreadPoolExecutor(4) as pool:
        predictions = [pool.submit(predict, i) for i in range(4)]
        try:
            for _ in range(2):
                left = statistics.copy()
                model.learn(left, rows[:9], LABELS[:9], -ones[:9])
                assert torch.get_num_threads() == 1
                assert torch.equal(solved(model, left).W, alone)
        finally:
            done.set()
        for prediction in predictions:
            assert all((scores == expected).all() for scores in prediction.result())
    assert (model.scores(parameters, rows) == expected).all()


def flushed(x):
    return bool((x * 1 == 0).all())


def test_every_worker_of_a_pass_flushes_denormals_and_no_other_thread_does():
    tiny = torch.full((2**20,), 1e-40)  # enough for several workers
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert not flushed(tiny)
        for n_threads in (None, 2, 3):
            with own_thread(n_threads) as call:
                assert call(flushed, tiny)
                assert call(torch.get_num_threads) == (n_threads or 4)
                assert not flushed(tiny)
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == 4
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_an_interruption_ends_a_pass():
    model, rows = linearized(SharedWeight, "norm")

    def interrupted():
        yield from rows[:10]
        raise KeyboardInterrupt

    statistics, before = model.empty_statistics(), threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        model.learn(statistics, interrupted(), LABELS, np.ones(24))
    assert threading.active_count() == before


def test_energies_and_threads_of_a_pass():
    model, rows = linearized(SharedWeight, "norm")
    weights = np.linspace(0, 2, 24)
    energies = model.learn(model.empty_statistics(), rows, LABELS, weights, n_threads=2)
    h, J = (torch.cat(parts) for parts in zip(*model.all_tangents(rows), strict=True))
    expected = h.double().square().sum(1) + J.double().square().sum((1, 2))
    np.testing.assert_allclose(energies, weights * expected.numpy())
    assert energies.dtype == np.float64
    probe = model.probe(n_threads=2)
    assert probe.shape == (model.n_probe,) == (4 * (model.d + 3 * model.projection.k),)
    assert torch.allclose(probe, model.probe())


FAULTS = """
import resource, torch
from fastntk_sk.tangents.threads import kept_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
with kept_heap():
    faults()
    print(plain / max(1, faults()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="freed memory is glibc's")
def test_a_batch_takes_the_pages_of_the_last_unless_the_environment_says_otherwise():
    def saved(**environment):
        command = [sys.executable, "-c", FAULTS]
        return float(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)

    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    assert saved(**plain) > 5
    assert saved(**plain, MALLOC_TRIM_THRESHOLD_="131072") < 2
