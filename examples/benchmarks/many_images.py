"""50,000 Fashion-MNIST images through lite0 at 64 px, default ladder: fit, and deletions by size."""

from __future__ import annotations

import argparse
import time

from _common import fashion_mnist, in_new_process, publish, table, training_images, with_alpha

from fastntk_sk import FastNTKClassifier

FORGET, ALPHA = (1, 10, 100, 1_000), 0.1


def learn_and_forget(n: int, pixels: int, n_tests: int) -> dict[str, float]:
    """Return seconds and accuracies: deletions with alpha="auto", then others with a constant one."""
    X, y = training_images(n)
    _, _, X_test, y_test = fashion_mnist()
    X_test, y_test = X_test[:n_tests], y_test[:n_tests]
    clf = FastNTKClassifier("tf_efficientnet_lite0", image_size=pixels, random_state=0, verbose=1)
    start = time.perf_counter()
    clf.fit(X, y)
    found = {"fit": time.perf_counter() - start, "accuracy": clf.score(X_test, y_test)}
    found["alpha"], place = clf.alpha_, 0
    for name, alpha in (("auto", None), ("constant", ALPHA)):
        clf = with_alpha(clf, alpha)
        for n_rows in FORGET:
            rows = slice(place, place + n_rows)
            start = time.perf_counter()
            clf.unlearn(X[rows])
            found[f"{name} {n_rows}"] = time.perf_counter() - start
            place += n_rows
        found[f"after, {name}"] = clf.score(X_test, y_test)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--tests", type=int, default=10_000)
    args = parser.parse_args()
    found, peak = in_new_process(
        "many_images", "learn_and_forget", n=args.images, pixels=args.pixels, n_tests=args.tests
    )
    fit = found["fit"]
    rows = [[f"fit on {args.images:,}", f"{fit:.0f}", "1", "", ""]]
    for n in FORGET:
        rows.append([f"forget {n:,}"])
        for name in ("auto", "constant"):
            seconds = found[f"{name} {n}"]
            rows[-1] += [f"{seconds:.1f}", f"{fit / seconds:.0f}"]
    header = ["", 'seconds, alpha "auto"', "fit / it", f"seconds, alpha {ALPHA}", "fit / it"]
    publish(
        "many_images",
        table(header, rows)
        + f"\n\nFit: {fit / 60:.1f} minutes. Peak {peak / 2**30:.1f} GiB of the process, the images "
        f"included. Accuracy on {args.tests:,} test images {100 * found['accuracy']:.1f} % (alpha_ "
        f'{found["alpha"]:.3g}), after the deletions with "auto" {100 * found["after, auto"]:.1f} %, '
        f"after those with alpha = {ALPHA} too, at that alpha, {100 * found['after, constant']:.1f} %. "
        f"lite0 at {args.pixels} px, default ladder, other defaults.",
    )


if __name__ == "__main__":
    main()
