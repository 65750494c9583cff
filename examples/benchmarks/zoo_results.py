"""Accuracy and seconds of recipes whose weights are at hand, written into zoo/*.toml.

1,000 Fashion-MNIST images at 64 px, 2,000 test images and the defaults of the estimator (a ladder),
for the zoo's table. ``python zoo_results.py NAME ...``; recipes without weights here are left alone.
"""

from __future__ import annotations

import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from _common import COMMIT, fashion_mnist, training_images

from fastntk_sk import FastNTKClassifier

ZOO = Path(__file__).parents[2] / "zoo"
N, N_TEST, PIXELS = 1000, 2000, 64


def measure(name: str) -> dict[str, object]:
    X, y = training_images(N)
    _, _, X_test, y_test = fashion_mnist()
    tests = np.random.default_rng(0).permutation(len(X_test))[:N_TEST]
    clf = FastNTKClassifier(name, image_size=PIXELS, random_state=0, verbose=1)
    start = time.perf_counter()
    clf.fit(X, y)
    fitted = time.perf_counter()
    accuracy = clf.score(X_test[tests], y_test[tests])
    begun = time.perf_counter()
    clf.unlearn(X[:100])
    return {
        "dataset": f"Fashion-MNIST, {N:,} images, {PIXELS} px",
        "accuracy": round(accuracy, 4),
        "seconds_fit": round(fitted - start, 1),
        "seconds_unlearn_100": round(time.perf_counter() - begun, 1),
        "versions": f"fastntk_sk {version('fastntk_sk')}, torch {version('torch')}, commit {COMMIT}",
        "date": time.strftime("%Y-%m-%d"),
    }


def write(name: str, results: dict[str, object]) -> None:
    """Put a results table below the recipe's own, in the file that has it."""
    lines = "\n".join(f"{key} = {value!r}".replace("'", '"') for key, value in results.items())
    block = f"[{name}.results]\n{lines}\n"
    for file in ZOO.glob("*.toml"):
        text = re.sub(rf"\n*\[{name}\.results\]\n(?:(?!\[).*\n)*", "\n\n", file.read_text())
        recipe = re.compile(rf"(\[{name}\]\n(?:.+\n)+)")
        if recipe.search(text):
            text = recipe.sub(lambda found: f"{found[1]}\n{block}", text)
            file.write_text(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        found = measure(argument)
        print(argument, found, flush=True)
        write(argument, found)
