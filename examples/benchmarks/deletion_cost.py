"""What forgetting 100 rows costs against refitting, SGD retraining, and by rows learned.

Fashion-MNIST at 96 px through lite0, norm subset, defaults. Deletions are measured in a fresh process
that loads the saved state, so that peak memory is theirs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from _common import in_new_process, publish, resident, table, training_images
from accuracy import sgd

from fastntk_sk import FastNTKClassifier


def forget(folder: str, seed: int) -> dict[str, float]:
    """Load a state, forget three times 100 rows, and return medians."""
    X, _ = training_images(300, seed)
    clf = FastNTKClassifier.load(folder)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    seconds = []
    for start in (0, 100, 200):
        begun = time.perf_counter()
        clf.unlearn(X[start : start + 100])
        seconds.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(seconds), "peak": resident("VmHWM")}


def forget_elsewhere(clf: FastNTKClassifier, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        clf.save(folder)
        return in_new_process("deletion_cost", "forget", folder=folder, seed=seed)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    (X, y), classes = training_images(10_000, args.seed), np.arange(10)

    def make():
        return FastNTKClassifier("tf_efficientnet_lite0", image_size=96, random_state=0)

    measured = {1000: forget_elsewhere(make().fit(X[:1000], y[:1000]), args.seed)}
    begun = time.perf_counter()
    clf = make().partial_fit(X[100:5000], y[100:5000], classes=classes)
    refit = time.perf_counter() - begun
    measured[5000] = forget_elsewhere(clf.partial_fit(X[:100], y[:100]), args.seed)
    measured[10000] = forget_elsewhere(clf.partial_fit(X[5000:10000], y[5000:10000]), args.seed)
    print(measured, refit, f"{psutil.virtual_memory().available:,} bytes free", flush=True)
    begun = time.perf_counter()
    sgd(X[100:5000], y[100:5000], 2e-3, pixels=96)
    retrain = time.perf_counter() - begun
    unit = measured[5000]["seconds"]
    lines = [
        ["forget 100 of 5,000 rows", f"{unit:.1f}", "1.0"],
        ["fit on the other 4,900", f"{refit:.0f}", f"{refit / unit:.1f}"],
        [
            "SGD on the other 4,900, 15 epochs, same parameters",
            f"{retrain:.0f}",
            f"{retrain / unit:.1f}",
        ],
    ]
    base = measured[1000]
    growth = [
        [f"{n:,}", f"{m['seconds']:.1f}", f"{m['seconds'] / base['seconds']:.2f}",
         f"{m['peak'] / 2**30:.2f}", f"{m['peak'] / base['peak']:.3f}"]
        for n, m in measured.items()
    ]  # fmt: skip
    text = table(["", "seconds", "times a deletion"], lines) + "\n\n"
    text += table(["rows learned", "seconds to forget 100", "ratio", "peak GiB", "ratio"], growth)
    publish("deletion_cost", text)


if __name__ == "__main__":
    main()
