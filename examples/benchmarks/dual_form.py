"""Forgetting 10 % of the rows: the published dual form against the additive statistics, by rows.

Fashion-MNIST at 64 px through lite0, norm subset, 10 classes, k = 1,024; beside them the default ladder.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from _common import fashion_mnist, in_new_process, publish, table, training_images

from fastntk_sk import FastNTKClassifier
from fastntk_sk.baselines import fast_ntk_dual
from fastntk_sk.baselines.dual import dual_bytes

SIZES, K, WIDTH = (500, 1000, 2000), 1024, 10 * 1281 + 1024
MACHINE = 24 * 10**9
NORM = {"trainable": "norm", "alpha": 0.25, "n_components": K}
LADDER = {"alpha": 0.1}


def forget(n: int, form: str) -> dict[str, float]:
    """Return the seconds of fit and deletion; the dual form takes its own pass over all rows."""
    (X, y), out = training_images(n), n // 10
    _, _, X_test, _ = fashion_mnist()
    start = time.perf_counter()
    clf = FastNTKClassifier(
        "tf_efficientnet_lite0",
        image_size=64,
        random_state=0,
        **(LADDER if form == "ladder" else NORM),
    ).fit(X, y)
    fitted = time.perf_counter()
    if form == "dual":
        clf = fast_ntk_dual(clf, X[out:], y[out:], X[:out], y[:out])
    else:
        clf.unlearn(X[:out])
    done = time.perf_counter()
    return {
        "fit": fitted - start,
        "forget": done - fitted,
        "scores": float(np.abs(clf.decision_function(X_test[:50])).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    lines = []
    for n in parser.parse_args().sizes:
        ours, peak = in_new_process("dual_form", "forget", n=n, form="ours")
        ladder, ladder_peak = in_new_process("dual_form", "forget", n=n, form="ladder")
        dual, dual_peak = in_new_process("dual_form", "forget", n=n, form="dual")
        lines.append(
            [
                f"{n:,}",
                f"{ours['forget']:.1f}",
                f"{dual['forget']:.1f}",
                f"{dual['forget'] / ours['forget']:.1f}",
                f"{peak / 2**30:.1f}",
                f"{dual_peak / 2**30:.1f}",
                f"{ladder['forget']:.1f}",
                f"{ladder_peak / 2**30:.1f}",
                f"{abs(dual['scores'] / ours['scores'] - 1):.0e}",
            ]
        )
        report(lines)  # the next size takes eight times as long


def report(lines: list[list[str]]) -> None:
    last = next(n for n in range(100, 10**6, 100) if dual_bytes(n + 100, 10, WIDTH) > MACHINE)
    header = [
        "rows",
        "ours, s",
        "dual, s",
        "dual / ours",
        "ours, peak GiB",
        "dual, peak GiB",
        "ladder, s",
        "ladder, peak GiB",
        "difference",
    ]
    publish(
        "dual_form",
        table(header, lines)
        + f"\n\nPeaks are of the process. By its estimate the dual form stops fitting in 24 GB beyond "
        f"{last:,} rows; at 5,000 it would take {dual_bytes(5000, 10, WIDTH) / 1e9:.0f} GB. Ours does "
        "not grow with the rows that stay. Tangents of norm layers, k = 1,024; the ladder has k = 4,096 "
        "and alpha = 0.1. The difference is that of the summed scores of 50 test images.",
    )


if __name__ == "__main__":
    main()
