"""50,000 Fashion-MNIST images through lite0 at 64 px, default ladder: fit, and deletions by size.

What a deletion consists of is measured by itself on the same rows, before it is made as a whole.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from _common import fashion_mnist, in_new_process, publish, table, training_images, with_alpha

from fastntk_sk import FastNTKClassifier
from fastntk_sk.distributed import Ranks
from fastntk_sk.state import sum_rows

FORGET, REPEATS, ALPHA = (1, 10, 100, 1_000), 3, 0.1
PARTS = "probe", "passes", "sums and solve"


def timed(seconds: dict[str, list[float]], name: str, call: Callable[[], Any]) -> Any:
    """Return what a call returns, and note its seconds."""
    start = time.perf_counter()
    found = call()
    seconds.setdefault(name, []).append(time.perf_counter() - start)
    return found


def solved(clf: FastNTKClassifier) -> FastNTKClassifier:
    """Return a classifier whose sums were just solved anew."""
    private = replace(clf._private, state=clf._private.state.solve())
    return clf._commit(private.adapter(clf.classes_), private)


def forget(
    clf: FastNTKClassifier, X: np.ndarray, y: np.ndarray, seconds: dict[str, list[float]]
) -> None:
    """Forget rows, and note the seconds of the whole and of its parts."""
    state, rows = clf._private.state, clf._rows(X)
    model, _ = timed(seconds, "probe", lambda: state.proven(len(X)))
    given = rows, y, np.ones(len(y)), np.arange(len(y)), state.environment["threads"], Ranks()
    hold = len(X) <= state.most_held
    sums = timed(seconds, "passes", lambda: sum_rows(model, *given, hold=hold))
    timed(seconds, "sums and solve", lambda: state.subtract(sums))
    timed(seconds, "whole", lambda: clf.unlearn(X))


def learn_and_forget(n: int, pixels: int, n_tests: int) -> dict[str, Any]:
    """Return accuracies and median seconds of a fit, of deletions, and of saves after them."""
    X, y = training_images(n)
    _, _, X_test, y_test = fashion_mnist()
    X_test, y_test = X_test[:n_tests], y_test[:n_tests]
    clf = FastNTKClassifier("tf_efficientnet_lite0", image_size=pixels, random_state=0, verbose=1)
    start = time.perf_counter()
    clf.fit(X, y)
    found: dict[str, Any] = {"fit": time.perf_counter() - start, "accuracy": clf.score(X_test, y_test)}
    found |= {"alpha": clf.alpha_, "width": clf.readout_.shape[1] - 1}
    place = 0
    with tempfile.TemporaryDirectory() as folder:
        clf.verbose = 0
        for name, alpha in (("constant", ALPHA), ("auto", None)):
            clf = solved(with_alpha(clf, alpha))
            for n_rows in FORGET:
                seconds: dict[str, list[float]] = {}
                for _ in range(REPEATS if n_rows < 1_000 else 1):
                    parts = [slice(place, place + n_rows), slice(place + n_rows, place + 2 * n_rows)]
                    place = parts[-1].stop
                    forget(clf, X[parts[0]], y[parts[0]], seconds)
                    timed(seconds, "save", partial(clf.save, f"{folder}/{name}"))
                    if alpha is None:
                        timed(seconds, "again", partial(clf.unlearn, X[parts[1]]))
                        clf = solved(clf)
                for what, values in seconds.items():
                    found[f"{name} {n_rows} {what}"] = statistics.median(values)
            found[f"after, {name}"] = clf.score(X_test, y_test)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--tests", type=int, default=10_000)
    args = parser.parse_args()
    found, peak = in_new_process(
        "many_images", "learn_and_forget", n=args.images, pixels=args.pixels, n_tests=args.tests
    )
    lines = []
    for n in FORGET:
        names = [f"constant {n} {what}" for what in ("whole", *PARTS, "save")]
        names += [f"auto {n} sums and solve", f"auto {n} whole", f"auto {n} again"]
        lines.append([f"{n:,}", *(f"{1000 * found[name]:,.0f}" for name in names)])
        lines[-1].append(f"{found['fit'] / found[f'constant {n} whole']:,.0f}")
    header = ["rows", f"ms, alpha {ALPHA}", *(f"of it {part}" for part in PARTS), "a save"]
    header += ['sums and solve, alpha "auto"', 'ms, alpha "auto"', "after another deletion", "fit / it"]
    publish(
        "many_images",
        table(header, lines)
        + f"\n\nForget rows of {args.images:,}, width {found['width']:,}: medians of {REPEATS}, of one "
        f"for 1,000 rows. Fit: {found['fit'] / 60:.1f} minutes; the last column is with alpha {ALPHA}. "
        'With "auto" the reduction that a solve has kept serves one deletion; the next one makes a new '
        f"one. Peak {peak / 2**30:.1f} GiB of the process, the images included. Accuracy on "
        f"{args.tests:,} test images {100 * found['accuracy']:.1f} % (alpha_ {found['alpha']:.3g}), "
        f"after those with alpha = {ALPHA}, at that alpha, {100 * found['after, constant']:.1f} %, "
        f'after those with "auto" too {100 * found["after, auto"]:.1f} %. lite0 at {args.pixels} px, '
        "default ladder, other defaults.",
    )


if __name__ == "__main__":
    main()
