"""50,000 Fashion-MNIST images through lite0 at 64 px, kernel="pseudo": fit, and deletions by size."""

from __future__ import annotations

import time

from _common import fashion_mnist, in_new_process, publish, table, training_images

from fastntk_sk import FastNTKClassifier

N, FORGET = 50_000, (1, 10, 100, 1_000)


def learn_and_forget() -> dict[str, float]:
    """Return seconds and accuracies."""
    X, y = training_images(N)
    _, _, X_test, y_test = fashion_mnist()
    clf = FastNTKClassifier(
        "tf_efficientnet_lite0", image_size=64, kernel="pseudo", random_state=0, verbose=1
    )
    start = time.perf_counter()
    clf.fit(X, y)
    found = {"fit": time.perf_counter() - start, "accuracy": clf.score(X_test, y_test)}
    place = 0
    for n in FORGET:
        start = time.perf_counter()
        clf.unlearn(X[place : place + n])
        found[str(n)] = time.perf_counter() - start
        place += n
    return found | {"after": clf.score(X_test, y_test)}


def main() -> None:
    found, peak = in_new_process("many_images", "learn_and_forget")
    rows = [[f"fit on {N:,}", f"{found['fit']:.0f}", "1"]]
    rows += [
        [f"forget {n:,}", f"{found[str(n)]:.1f}", f"{found['fit'] / found[str(n)]:.0f}"] for n in FORGET
    ]
    publish(
        "many_images",
        table(["", "seconds", "fit / it"], rows)
        + f"\n\nPeak {peak / 2**30:.1f} GiB of the process, the images included. Accuracy on the "
        f"10,000 test images {100 * found['accuracy']:.1f} %, after the deletions "
        f"{100 * found['after']:.1f} %. lite0 at 64 px, kernel='pseudo', other defaults.",
    )


if __name__ == "__main__":
    main()
