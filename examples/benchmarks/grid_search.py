"""Choosing alpha and tangent_scale: FastNTKClassifierCV against GridSearchCV, same folds, same answer.

300 Fashion-MNIST images at 64 px through lite0, norm subset, k = 512, 3 folds, 9 candidates. A ladder
has alpha alone, which its sums choose by themselves, with no folds.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from _common import publish, table, training_images
from sklearn.model_selection import GridSearchCV

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV

LADDER = 'a fit of a ladder, alpha="auto"'
ALPHAS, SCALES = (0.1, 0.25, 1.0), (0.25, 1.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--pixels", type=int, default=64)
    args = parser.parse_args()
    X, y = training_images(args.rows)
    backbone, settings = (
        "tf_efficientnet_lite0",
        {
            "trainable": "norm",
            "image_size": args.pixels,
            "n_components": 512,
            "random_state": 0,
        },
    )
    grid = {"alphas": ALPHAS, "tangent_scales": SCALES}
    clf = FastNTKClassifier(backbone, **settings)
    searches = {
        "FastNTKClassifierCV": FastNTKClassifierCV(backbone, **grid, cv=3, **settings),
        "GridSearchCV": GridSearchCV(clf, {"alpha": ALPHAS, "tangent_scale": SCALES}, cv=3),
    }
    seconds = {}
    for name, search in searches.items():
        start = time.perf_counter()
        search.fit(X, y)
        seconds[name] = time.perf_counter() - start
    start = time.perf_counter()
    ladder = FastNTKClassifier(backbone, **settings | {"trainable": "ladder"}).fit(X, y)
    seconds[LADDER] = time.perf_counter() - start
    unit = seconds["FastNTKClassifierCV"]
    gap = np.abs(
        np.subtract(*(search.cv_results_["mean_test_score"] for search in searches.values()))
    ).max()
    lines = [
        [name, f"{seconds[name]:.0f}", f"{seconds[name] / unit:.1f}", search.best_params_]
        for name, search in searches.items()
    ]
    fitted = [f"{seconds[LADDER]:.0f}", f"{seconds[LADDER] / unit:.1f}", {"alpha": ladder.alpha_}]
    lines.append([LADDER, *fitted])
    publish(
        "grid_search",
        table(["search", "seconds", "ratio", "best"], lines)
        + f"\n\nLargest difference between the candidates' mean scores: {gap:.1g}.",
    )


if __name__ == "__main__":
    main()
