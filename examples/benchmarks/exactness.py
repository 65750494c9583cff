"""How exactly a deletion equals a refit: 100 of 1,000 Fashion-MNIST images, lite0, norm subset.

The solved parameters are compared in float64, before they are rounded for prediction.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _common import publish, table, training_images

from fastntk_sk import FastNTKClassifier
from fastntk_sk.solvers import solve_schur


def make(precision, pixels, k, batch_size=32):
    return FastNTKClassifier(
        "tf_efficientnet_lite0",
        trainable="norm",
        image_size=pixels,
        n_components=k,
        precision=precision,
        batch_size=batch_size,
        random_state=0,
    )


def solved(clf):
    """Return the float64 solution [W, z] of the estimator's statistics."""
    frozen = clf._state.frozen
    solution = solve_schur(
        clf._state.statistics,
        alpha=frozen.alpha,
        tangent_scale=frozen.tangent_scale,
        target_scale=frozen.target_scale,
    )
    return torch.cat([solution.W.flatten(), solution.z])


def gap(a, b):
    return f"{float((a - b).norm() / b.norm()):.1e}"


def measure(X, y, precision, pixels, k, drift):
    """Return table rows for one precision."""
    where = f"{precision}, {pixels} px, k = {k}"
    classes, forget = np.arange(10), slice(0, 100)
    refit = make(precision, pixels, k).partial_fit(X[100:], y[100:], classes=classes)
    expected = solved(refit)
    clf = make(precision, pixels, k).partial_fit(X, y, classes=classes)
    clf.unlearn(X[forget])
    rows = [[where, "100 of 1,000 rows at once", gap(solved(clf), expected)]]
    clf.partial_fit(X[forget], y[forget])
    for start in range(0, 100, 5):
        clf.unlearn(X[start : start + 5])
    rows.append([where, "the same rows, 20 deletions of 5 (after learning them again)",
                 gap(solved(clf), expected)])  # fmt: skip
    if drift:
        other = make(precision, pixels, k, batch_size=20).partial_fit(X[100:], y[100:], classes=classes)
        rows.append([where, "refit with batches of 20 instead of 32", gap(solved(other), expected)])
        threads = torch.get_num_threads()
        other_threads = 1 if threads > 1 else 2
        torch.set_num_threads(other_threads)
        other = make(precision, pixels, k).partial_fit(X[100:], y[100:], classes=classes)
        torch.set_num_threads(threads)
        rows.append(
            [where, f"refit with {other_threads} threads, not {threads}", gap(solved(other), expected)]
        )
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    X, y = training_images(1000)
    lines = measure(X, y, "float32", 96, 4096, drift=True)
    print(lines, flush=True)
    lines += measure(X, y, "float64", 96, 4096, drift=False)
    header = ["Jacobians", "deletion", "relative difference to a refit without the rows"]
    publish("exactness", table(header, lines))


if __name__ == "__main__":
    main()
