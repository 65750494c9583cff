"""What is learned and what is to be forgotten: data sets, networks, and four forget sets."""

from __future__ import annotations

import copy
import hashlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from _common import CACHE, emoji, fashion_mnist
from pretrained_vit import folder

from fastntk_sk import FastNTKClassifier
from fastntk_sk.tangents.ladder import Ladder

FORGET = ("flipped labels", "random", "part of a class", "a class")
VALIDATION = 1000  # the seed whose rows choose hyper-parameters: its test rows are training images


@dataclass(frozen=True)
class Task:
    """A network, a number of training images, a kind of forget set and a data set."""

    network: str
    n: int
    forget: str
    data: str = "fashion-mnist"

    def __str__(self) -> str:
        named = "" if self.data == "fashion-mnist" else f"{self.data}, "
        return f"{named}{self.network}, {self.n:,} images, {self.forget}"


@dataclass
class Problem:
    """Rows of one draw; a set is a pair (X, y)."""

    learned: tuple
    forget: tuple
    retain: tuple
    test: tuple


TASKS = [
    *(Task("lite0", 1000, kind) for kind in FORGET),
    *(Task("lite0", 300, kind) for kind in FORGET[:2]),
    *(Task("vit", 1000, kind) for kind in FORGET),
    *(Task("lite0", 5000, kind) for kind in FORGET[:2]),
    *(Task(network, 800, kind, "emoji") for network in ("lite0", "vit-s14") for kind in FORGET[:2]),
]
# of the group "ladder"; what plain SGD retraining did is known for those that are in both lists
LADDER_TASKS = [
    *(Task("lite0", n, kind) for n in (300, 1000, 5000) for kind in FORGET),
    *(Task(network, 800, kind, "emoji") for network in ("lite0", "vit-s14") for kind in FORGET),
]
SMALL = [Task("mlp", 60, kind, "digits") for kind in FORGET[:2]]


def problem(task: Task, seed: int) -> Problem:
    """Draw the rows of a seed, and those for validation, which no draw learns or tests.

    Four seeds and the validation learn disjoint rows where there are enough, and else share them.
    """
    X, y, X_test, y_test = _images(task)
    held, rest = np.split(np.random.default_rng(0).permutation(len(X)), [min(2000, len(X) // 5)])
    if task.n > len(rest):
        raise ValueError(
            f"Expected at least {task.n + len(held):,} training images for draws of {task.n:,} and for "
            f"validation, got {len(X):,}. Take fewer: --images {len(rest)}."
        )
    place = 4 if seed == VALIDATION else seed % 4
    rows = rest[place * task.n :][: task.n]
    if 5 * task.n > len(rest):
        rows = np.random.default_rng([task.n, place]).permutation(rest)[: task.n]
    draws = np.random.default_rng(seed)
    if seed == VALIDATION:
        X_test, y_test = X[held[:1000]], y[held[:1000]]
    else:
        tests = draws.permutation(len(X_test))[:2000]
        X_test, y_test = X_test[tests], y_test[tests]
    X, y = X[rows], y[rows].copy()
    classes = np.unique(y)
    forget = np.zeros(task.n, dtype=bool)
    if task.forget in ("flipped labels", "random"):
        forget[draws.choice(task.n, task.n // 10, replace=False)] = True
    else:
        members = np.flatnonzero(y == draws.choice(classes))
        forget[members[: len(members) // (5 if task.forget == "part of a class" else 1)]] = True
    if task.forget == "flipped labels":
        shift = draws.integers(1, len(classes), forget.sum())
        y[forget] = classes[(np.searchsorted(classes, y[forget]) + shift) % len(classes)]
    return Problem((X, y), (X[forget], y[forget]), (X[~forget], y[~forget]), (X_test, y_test))


def estimator(task: Task, anchor: str, seed: int, **settings) -> FastNTKClassifier:
    """Return the unfitted estimator of a task: subset and ridge 0.25, unless settings say else."""
    settings = {"alpha": 0.25} | network(task.network) | settings
    return FastNTKClassifier(**settings, anchor=anchor, random_state=seed)


def with_settings(fitted: FastNTKClassifier, alpha: float, predict_with: str) -> FastNTKClassifier:
    """Return a copy that is solved and read otherwise, without another pass or another fine-tuning."""
    state = fitted._state.with_settings(alpha=alpha, predict_with=predict_with).solve()
    private = replace(fitted._private, state=state)
    return copy.copy(fitted)._commit(private.adapter(fitted.classes_), private)


@contextmanager
def remembering(seen: dict[tuple[str, bytes], torch.Tensor]) -> Iterator[None]:
    """Let ladders take the features of rows from `seen`, or else put them there: not for timing."""
    forward = Ladder.forward

    def remembered(ladder: Ladder, x: torch.Tensor) -> torch.Tensor:
        which = ladder.digest()
        keys = [(which, hashlib.sha256(row.numpy().tobytes()).digest()) for row in x]
        new = [i for i, key in enumerate(keys) if key not in seen]
        if new:
            seen.update(zip((keys[i] for i in new), forward(ladder, x[new]), strict=True))
        return torch.stack([seen[key] for key in keys])

    with patch.object(Ladder, "forward", remembered):
        yield


def small_vit() -> torch.nn.Module:
    """Return a small ViT that was pretrained on the first five classes; the first call trains it."""
    path = CACHE / "vit-on-classes-0-to-4.safetensors"
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, patch_size=7, depth=4, num_classes=5, class_token=True
    )
    if not path.exists():
        print("pretraining a small ViT on the first five classes", flush=True)
        torch.manual_seed(0)
        net.init_weights()
        X, y, *_ = fashion_mnist()
        X, y = _as_tensor(X[y < 5]), torch.from_numpy(y[y < 5])
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
        steps = 3 * -(-len(y) // 128)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps)
        net.train()
        for _ in range(3):
            for rows in torch.randperm(len(y)).split(128):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
                optimiser.step()
                schedule.step()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        save_file(net.state_dict(), partial)
        os.replace(partial, path)
    net.load_state_dict(load_file(path))
    net.reset_classifier(0)
    return net.eval()


def _as_tensor(X: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(X)[:, None].float() / 255).sub(0.5).div(0.5).expand(-1, 3, -1, -1)


def pretrained_vit() -> torch.nn.Module:
    """Return a ViT-S/14 for 98 pixels whose weights are not of these data."""
    return timm.create_model(f"local-dir:{folder()}", pretrained=True, num_classes=0, img_size=98).eval()


def pictures() -> tuple[np.ndarray, ...]:
    """Return X_train, y_train, X_test, y_test: emoji in colour, 400 of them to test."""
    X, y = emoji()
    train, test = np.split(np.random.default_rng(1).permutation(len(X)), [len(X) - 400])
    return X[train], y[train], X[test], y[test]


def digits() -> tuple[np.ndarray, ...]:
    """Return X_train, y_train, X_test, y_test: uint8 images of shape (n, 8, 8)."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    X = (X.reshape(-1, 8, 8) * 15.9375).astype(np.uint8)
    return X[:1400], y[:1400], X[1400:], y[1400:]


DATA: dict[str, Callable[[], tuple[np.ndarray, ...]]] = {
    "fashion-mnist": fashion_mnist,
    "emoji": cache(pictures),
    "digits": digits,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "lite0": {"backbone": "tf_efficientnet_lite0", "trainable": "norm", "image_size": 64},
    "vit": {"backbone": small_vit, "trainable": "prompt", "image_size": 28, "n_prompts": 10},
    "vit-s14": {"backbone": pretrained_vit, "trainable": "prompt", "image_size": 98},
    "mlp": {
        "backbone": "mlp",
        "trainable": "norm",
        "n_components": 64,
        "finetune_params": {"batch_size": 10},
    },
}
_SOURCES = ("timm", "torchvision", "hf-hub", "local-dir")  # what names of backbones begin with


def data(name: str) -> tuple[np.ndarray, ...]:
    """Return X_train, y_train, X_test, y_test of a name in DATA, or of a function, "module:function"."""
    return DATA[name]() if name in DATA else pkgutil.resolve_name(name)()


@cache  # a module that a function makes is the same in all fits
def network(name: str) -> dict[str, Any]:
    """Return the estimator's parameters: of a name in NETWORKS, a function, or a backbone's name."""
    if name in NETWORKS:
        return NETWORKS[name]
    if ":" in name and name.split(":")[0] not in _SOURCES:
        return pkgutil.resolve_name(name)()
    return {"backbone": name, "trainable": "norm"}


def _images(task: Task) -> tuple[np.ndarray, ...]:
    X, y, X_test, y_test = data(task.data)
    if task.network == "vit" and task.data == "fashion-mnist":
        # pretrained on the other half of the classes
        X, y, X_test, y_test = X[y >= 5], y[y >= 5], X_test[y_test >= 5], y_test[y_test >= 5]
    if task.network == "mlp":
        X, X_test = (of.reshape(len(of), -1).astype(np.float32) for of in (X, X_test))
    return X, y, X_test, y_test
