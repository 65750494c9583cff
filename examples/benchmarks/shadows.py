"""Audits of exact deletion with shadow models: U-LiRA, KLoM and the algebraic gap.

1,000 Fashion-MNIST images, lite0 at 64 px, default ladder, alpha = 0.1, of which a tenth of the labels
are flipped (what only memory gets right). Beside the deletion stand its noise floor, a second set of
oracle models in its place, and a deletion that does nothing, which the audit must catch.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from _common import fashion_mnist, publish, table

from fastntk_sk import FastNTKClassifier
from fastntk_sk.evaluation import algebraic_gap, klom, shadow_margins, u_lira
from fastntk_sk.sums.statistics import Statistics


def line(name, unlearned, oracle):
    attack, divergence = u_lira(unlearned, oracle), klom(unlearned, oracle)
    return [
        name,
        f"{attack.auc:.3f} ± {attack.auc_standard_error:.3f}",
        f"{100 * attack.tpr_at_1_percent_fpr:.1f} %",
        f"{divergence.mean():.2f}",
        f"{np.percentile(divergence, 95):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--components", type=int, default=1024)
    parser.add_argument("--pixels", type=int, default=64)
    args = parser.parse_args()
    X, y, _, _ = fashion_mnist()
    draws = np.random.default_rng(0)
    rows = draws.permutation(len(X))[:1000]
    X, y = X[rows], y[rows].copy()
    y[:100] = (y[:100] + draws.integers(1, 10, 100)) % 10
    clf = FastNTKClassifier(
        "tf_efficientnet_lite0",
        trainable="ladder",
        image_size=args.pixels,
        n_components=args.components,
        alpha=0.1,
        random_state=0,
    ).fit(X, y)
    start = time.perf_counter()
    unlearned, oracle = shadow_margins(clf, X, y, n_models=args.models, verbose=1)
    seconds = time.perf_counter() - start
    _, second = shadow_margins(clf, X, y, n_models=args.models, random_state=1, verbose=1)
    lines = [
        line("unlearned against never learned", unlearned, oracle),
        line("noise floor: never learned, twice", second, oracle),
    ]
    add = Statistics.add
    Statistics.add = lambda self, *batch: None if (batch[-1] < 0).all() else add(self, *batch)
    idle = shadow_margins(clf, X, y, n_models=args.models, verbose=1)
    Statistics.add = add
    lines.append(line("a deletion that does nothing", *idle))
    refit = FastNTKClassifier(**clf.get_params()).fit(X[100:], y[100:])
    gap = algebraic_gap(clf.unlearn(X[:100]), refit)
    header = ["models compared", "U-LiRA AUC", "TPR at 1 % FPR", "KLoM mean", "KLoM 95th percentile"]
    text = table(header, lines) + (
        f"\n\n{args.models} shadow models of 500 retained and 250 unlearned rows (a quarter of the "
        f"models for each kind and row), ladder with k = {args.components:,}: {seconds:.0f} seconds, "
        f"the passes of all rows included. Algebraic gap of forgetting the 100 flipped rows: {gap:.1e} "
        "(parameters rounded to float32)."
    )
    publish("shadows", text)


if __name__ == "__main__":
    main()
