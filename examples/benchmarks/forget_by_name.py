"""What it takes to forget a person by name, where the features are kept, and how exact it is.

Vectors, 20 of them a person, go through a random network of 4,096 features in float32. The parameters
after a deletion are compared with those of a refit without the person.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import publish, table

from fastntk_sk import FastNTKClassifier

A_PERSON, CLASSES, WIDTH = 20, 10, 4096


def network() -> torch.nn.Module:
    """Return a random network."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, WIDTH), torch.nn.Tanh())


def timed(call: Any) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def parameters(clf: FastNTKClassifier) -> np.ndarray:
    """Return all that predicts, as one vector."""
    return np.concatenate([clf.readout_.ravel(), clf.displacement_])


def gap(clf: FastNTKClassifier, refit: FastNTKClassifier) -> float:
    """Return the relative difference of two estimators' parameters."""
    expected = parameters(refit)
    return float(np.linalg.norm(parameters(clf) - expected) / np.linalg.norm(expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=50_000)
    args = parser.parse_args()
    n, draws = args.rows, np.random.default_rng(0)
    y = draws.integers(0, CLASSES, n)
    X = (draws.normal(size=(n, 64)) + 2 * np.eye(CLASSES, 64)[y]).astype(np.float32)
    persons = np.arange(n) % (n // A_PERSON)
    names = [f"person {person}" for person in persons]
    new = {"backbone": network, "trainable": "head", "backbone_has_seen": False}
    new |= {"alpha": 0.1, "random_state": 0}
    seconds, lines = {}, []
    seconds["fit, features kept"], clf = timed(
        lambda: FastNTKClassifier(keep="features", **new).fit(X, y, sample_ids=names)
    )
    print(seconds, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        seconds["first save"], _ = timed(lambda: clf.save(path))
        size = path.stat().st_size
        seconds["load"], clf = timed(lambda: FastNTKClassifier.load(path, backbone=network))
        seconds["find one picture"], _ = timed(lambda: clf.find(X[7:8]))
        seconds["forget one person by name"], _ = timed(lambda: clf.unlearn(sample_ids=["person 7"]))
        seconds["save after it"], _ = timed(lambda: clf.save(path))
        others = [f"person {person}" for person in range(8, 58)]
        seconds["forget 50 persons by name"], _ = timed(lambda: clf.unlearn(sample_ids=others))
    left = (persons < 7) | (persons > 57)
    seconds["refit without them"], refit = timed(lambda: FastNTKClassifier(**new).fit(X[left], y[left]))
    before = gap(clf, refit)
    seconds["rebuild without data"], _ = timed(clf.rebuild)
    lines = [[name, f"{value:.2f}"] for name, value in seconds.items()]
    text = (
        f"{n:,} rows, {A_PERSON} a person, {WIDTH:,} features; the file has {size / 1e6:,.0f} MB. After "
        f"both deletions the parameters, which are published in float32, are {before:.1e} (relative) "
        f"away from those of the refit, and {gap(clf, refit):.1e} after the sums were made anew."
    )
    publish("forget_by_name", f"{table(['what', 'seconds'], lines)}\n\n{text}")


if __name__ == "__main__":
    main()
