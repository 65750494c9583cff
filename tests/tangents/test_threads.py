"""Predictions from many threads are those of one, while another thread forgets and learns."""

import copy
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from torch import nn

from fastntk_sk import FastNTKClassifier
from fastntk_sk.tangents.threads import own_thread

RANDOM = np.random.default_rng(0)
VECTORS, LABELS = RANDOM.normal(size=(24, 4)), np.arange(24) % 3
PICTURES = RANDOM.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


class Whole(nn.Module):
    """A weight is used without its module, so that the generic tap has to take the whole network."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(nn.functional.linear(x, self.layer.weight))))


class Attending(nn.Module):
    """torch's own transformer layers, which have a fused path without derivatives."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 8)
        encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(self.layer(x[:, :, None])).mean(1)


def vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)


def cnn():
    return timm.create_model("test_resnet", num_classes=0)


TUNED = {"anchor": "finetuned", "predict_with": "network", "max_epochs": 1}
CASES = {
    "ladder": (cnn, "ladder", {}),
    "ladder of a ViT beside its norms": (vit, ("ladder", "norm"), {}),
    "norm, linear": (cnn, "norm", {}),
    "norm, network": (cnn, "norm", {"predict_with": "network"}),
    "norm, pseudo": (cnn, "norm", {"kernel": "pseudo"}),
    "prompts": (vit, "prompt", {}),
    "prompts, fine-tuned": (vit, "prompt", TUNED),
    "whole network": (Whole, "full", {}),
    "torch's transformer": (Attending, "norm", {}),
}


def fitted(make, trainable, **changes):
    """Return a fitted estimator and its rows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
    X = PICTURES if make in (cnn, vit) else VECTORS
    params = {"n_components": 10, "n_prompts": 2, "image_size": 32, "batch_size": 8, "random_state": 0}
    return FastNTKClassifier(net, trainable=trainable, alpha=0.1, **params | changes).fit(X, LABELS), X


@pytest.fixture
def one_thread():
    """Torch's threads of every thread, so that cores are not shared by many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore::fastntk_sk.exceptions.LinearityWarning")
@pytest.mark.parametrize("case", CASES)
def test_threads_predict_what_one_predicts_while_another_forgets(case, one_thread):
    make, trainable, changes = CASES[case]
    clf, X = fitted(make, trainable, **changes)
    alone = copy.deepcopy(clf).unlearn(X[:9])
    expected, done = [each.decision_function(X) for each in (clf, alone)], threading.Event()

    def predict(_):
        found = [clf.decision_function(X)]
        while not done.is_set():
            found.append(clf.decision_function(X))
        return found

    with ThreadPoolExecutor(4) as pool:
        predictions = [pool.submit(predict, i) for i in range(4)]
        try:
            clf.unlearn(X[:9])
            assert torch.get_num_threads() == 1
        finally:
            done.set()
        for prediction in predictions:
            for scores in prediction.result():
                assert any((scores == each).all() for each in expected)
    assert (clf.readout_ == alone.readout_).all()
    assert (clf.decision_function(X) == expected[1]).all()


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


class Stopping(Whole):
    stop = False

    def forward(self, x):
        if Stopping.stop:
            raise KeyboardInterrupt
        return super().forward(x)


def test_an_interruption_ends_a_pass(monkeypatch):
    clf, _ = fitted(Stopping, "head", image_size=None)
    before, threads = clf.decision_function(VECTORS), threading.active_count()
    monkeypatch.setattr(Stopping, "stop", True)
    with pytest.raises(KeyboardInterrupt):
        clf.unlearn(VECTORS[:9])
    monkeypatch.undo()
    assert threading.active_count() == threads
    np.testing.assert_array_equal(clf.decision_function(VECTORS), before)


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
