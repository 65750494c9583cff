"""Memorised wrong labels, forgotten at the fine-tuned anchor by one solve without the retain set.

1,000 Fashion-MNIST images, lite0 at 64 px, norm subset, 15 epochs; 100 labels are flipped and are the
forget set. Other parameters are the defaults, of tangents alpha = 0.25. Test: 2,000 test images. Three
seeds, of rows, flips and the estimator.
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
from _common import fashion_mnist, publish, table, with_error

from fastntk_sk import FastNTKClassifier
from fastntk_sk.baselines import before_solve, retrain


def run(X, y, X_test, y_test, seed, args):
    """Return accuracies by model and set, the linearity, and seconds."""
    draws = np.random.default_rng(seed)
    rows = draws.permutation(len(X))[: args.rows]
    tests = draws.permutation(len(X_test))[:2000]
    X, y = X[rows], y[rows].copy()
    y[:100] = (y[:100] + draws.integers(1, 10, 100)) % 10
    forget, retain = (X[:100], y[:100]), (X[100:], y[100:])
    original = FastNTKClassifier(
        "tf_efficientnet_lite0",
        trainable="norm",
        anchor="finetuned",
        alpha=0.25,
        image_size=args.pixels,
        max_epochs=args.epochs,
        random_state=seed,
    ).fit(X, y)
    unlearned, start = copy.deepcopy(original), time.perf_counter()
    unlearned.unlearn(*forget)
    middle = time.perf_counter()
    retrained = retrain(original, *retain, *forget)
    seconds = middle - start, time.perf_counter() - middle
    models = {
        "SGD on all rows": before_solve(original),
        "fitted on all rows (SGD and solve)": original,
        "unlearned": unlearned,
        "retrained (SGD and solve)": retrained,
        "retrained (SGD alone)": before_solve(retrained),
    }
    sets = {"forget": forget, "retain": retain, "test": (X_test[tests], y_test[tests])}
    found = {
        (model, name): 100 * clf.score(*rows)
        for model, clf in models.items()
        for name, rows in sets.items()
    }
    print(seed, found, original.linearity_, seconds, flush=True)
    return found, original.linearity_, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    data = fashion_mnist()
    results = [run(*data, seed, args) for seed in range(args.seeds)]
    names = ("forget", "retain", "test")

    lines = [
        [model, *(with_error([found[model, name] for found, _, _ in results], 1) for name in names)]
        for model in dict.fromkeys(model for model, _ in results[0][0])
    ]
    for oracle in ("retrained (SGD and solve)", "retrained (SGD alone)"):
        differences = [
            with_error([found["unlearned", name] - found[oracle, name] for found, _, _ in results], 1)
            for name in names
        ]
        lines.append([f"unlearned minus {oracle}, paired", *differences])
    linearity = np.mean([value for _, value, _ in results])
    unlearn, again = np.mean([seconds for _, _, seconds in results], axis=0)
    header = ["accuracy in %", "flipped labels (forget)", "retain", "test"]
    text = table(header, lines) + (
        f"\n\nMean and standard error over {args.seeds} seeds; norm layers. linearity_ "
        f"{linearity:.2f}. Seconds: unlearn {unlearn:.1f}, retrain {again:.0f} (ratio "
        f"{again / unlearn:.0f})."
    )
    publish("flipped", text)


if __name__ == "__main__":
    main()
