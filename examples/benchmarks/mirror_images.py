"""What augment="flip" gives and costs, and what it would give to learn mirror images as rows.

Fashion-MNIST, lite0 at 64 px, a ladder. alpha is chosen by the sums ("auto"), or is the best of a grid
on 2,000 validation rows, the same for all draws; test: 2,000 test images.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from _common import fashion_mnist, interleaved, publish, table, with_error

from fastntk_sk import FastNTKClassifier
from fastntk_sk.sums.ridge import solve_each

ALPHAS = (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.178, 0.316)
ALONE, FLIP, ROWS = "the picture alone", '`augment="flip"`', "mirror images as rows of weight 1/2"
N_TIMED = 64


def mirrored(X: np.ndarray) -> np.ndarray:
    """Return pictures with left and right exchanged."""
    return np.ascontiguousarray(X[:, :, ::-1])


def features(clf: FastNTKClassifier, X: np.ndarray) -> torch.Tensor:
    """Return features of pictures and of their mirror images, of shape (2, n, width + 1)."""
    model = clf._adapter.model
    views = (X, mirrored(X))
    return torch.stack(
        [torch.cat([h for h, _ in model.all_tangents(clf._rows(view))]) for view in views]
    ).double()


def fitted(X: np.ndarray, y: np.ndarray, pixels: int) -> dict[str, FastNTKClassifier]:
    """Return the three ways to learn some rows; alpha is chosen from their sums afterwards."""
    given: dict[str, Any] = {"image_size": pixels, "alpha": 0.1, "random_state": 0}
    alone, flip, rows = (
        FastNTKClassifier("tf_efficientnet_lite0", augment=augment, **given)
        for augment in (None, "flip", None)
    )
    both, twice = np.concatenate([X, mirrored(X)]), np.r_[y, y]
    return {
        ALONE: alone.fit(X, y),
        FLIP: flip.fit(X, y),
        ROWS: rows.fit(both, twice, np.full(len(twice), 0.5)),
    }


def accuracies(
    clf: FastNTKClassifier, views: torch.Tensor, y: np.ndarray, alphas: list[float | None]
) -> list[float]:
    """Return the accuracy in percent at each alpha; None is "auto". Scores are means over `views`."""
    solutions = solve_each(clf._state.statistics, alphas, tangent_scale=1.0, target_scale=1.0)
    h = views.mean(0)
    return [100 * float(((h @ one.W.T).argmax(1).numpy() == y).mean()) for one in solutions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--pixels", type=int, default=64)
    args = parser.parse_args()
    X, y, X_test, y_test = fashion_mnist()
    order = np.random.default_rng(0).permutation(len(X))
    held, others = order[:2000], order[2000:]
    tested = np.random.default_rng(0).permutation(len(X_test))[:2000]
    truth = np.r_[y[held], y_test[tested]]
    settings = [None, *ALPHAS]
    found = {name: np.empty((args.draws, 2, len(settings))) for name in (ALONE, FLIP, ROWS)}
    for draw in range(args.draws):
        chosen = others[draw * args.rows : (draw + 1) * args.rows]
        models = fitted(X[chosen], y[chosen], args.pixels)
        if not draw:  # the features of a picture do not depend on the rows
            views = features(models[ALONE], np.concatenate([X[held], X_test[tested]]))
        for name, clf in models.items():
            read = views[:1] if name == ALONE else views
            for split, part in enumerate((slice(0, 2000), slice(2000, 4000))):
                found[name][draw, split] = accuracies(clf, read[:, part], truth[part], settings)
        print(draw, {name: values[draw].round(2).tolist() for name, values in found.items()}, flush=True)
    seconds = interleaved(
        {name: learning(models[name], X[:N_TIMED], y[:N_TIMED]) for name in (ALONE, FLIP)}, 5
    )
    seconds[ROWS] = seconds[FLIP]  # the same passes
    lines = []
    for name, values in found.items():
        best = 1 + int(values[:, 0, 1:].mean(0).argmax())
        for setting, alpha in ((0, "auto"), (best, f"{settings[best]:g}")):
            cells = [with_error(values[:, split, setting], 2) for split in (0, 1)]
            gain = with_error(values[:, 1, setting] - found[ALONE][:, 1, 0], 2)
            lines.append([name, alpha, *cells, gain, f"{1000 * seconds[name] / N_TIMED:.1f}"])
    head = ["learned", "alpha", "validation %", "test %", "test, minus the first line", "ms a row"]
    publish(
        "mirror_images",
        f"{table(head, lines)}\n\n{args.rows:,} rows at {args.pixels} px, 4,096 features; mean and "
        f"standard error over {args.draws} draws of rows, differences paired. The second alpha of each "
        "is the best on validation. Scores are means over both views, except those of the picture "
        "alone. Learned as rows, a picture and its mirror image count as two in the evidence, and "
        'alpha="auto" is too large.',
    )


def learning(clf: FastNTKClassifier, X: np.ndarray, y: np.ndarray) -> Any:
    """Return what takes the sums over some rows."""
    model, rows = clf._adapter.model, clf._rows(X)
    return lambda: model.learn(model.empty_statistics(), rows, y, np.ones(len(y)))


if __name__ == "__main__":
    main()
