"""How exactly deletions equal a refit without the rows: Fashion-MNIST through lite0.

The ladder, which is the default, beside tangents of norm layers. Solutions are compared in float64,
before they are rounded for prediction. At the estimator's own alpha it is the solution that the deletion
itself has found, from the factorisation that it has kept; the sums hold no alpha, so that those of a
ladder are solved at others too, anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from _common import publish, table, training_images

from fastntk_sk import FastNTKClassifier
from fastntk_sk.state import State
from fastntk_sk.sums.ridge import solve
from fastntk_sk.sums.solvers import Solution

CLASSES = np.arange(10)
ALPHAS = {"norm": (0.25,), "ladder": (0.1, None)}


def make(trainable, precision, pixels, k, batch_size=32, alpha=None):
    return FastNTKClassifier(
        "tf_efficientnet_lite0",
        trainable=trainable,
        alpha=ALPHAS[trainable][0] if alpha is None else alpha,
        image_size=pixels,
        n_components=k,
        precision=precision,
        batch_size=batch_size,
        random_state=0,
    )


def noting_solutions() -> list[Solution]:
    """Let states note the solution that they take; return the list of it, the last one."""
    taken: list[Solution] = []
    take = State._solved

    def note(state: State, solution: Solution) -> State:
        taken[:] = [solution]
        return take(state, solution)

    State._solved = note
    return taken


TAKEN = noting_solutions()


def solved(clf, alpha):
    """Return a float64 solution [W, z] and its alpha: the one just taken, or of the sums at another."""
    settings = clf._state.settings
    if alpha == settings.alpha:
        (solution,) = TAKEN
        return torch.cat([solution.W.flatten(), solution.z]), solution.alpha
    solution = solve(
        clf._state.statistics,
        alpha=alpha,
        tangent_scale=settings.tangent_scale,
        target_scale=settings.target_scale,
    )
    return torch.cat([solution.W.flatten(), solution.z]), solution.alpha


def all_solved(clf, trainable):
    """Return the solutions at every alpha."""
    return {alpha: solved(clf, alpha) for alpha in ALPHAS[trainable]}


class Reference:
    """What a fit without the rows solves to.

    Parameters
    ----------
    clf : FastNTKClassifier
        Fitted.

    trainable : str
    """

    def __init__(self, clf, trainable):
        self.solutions = all_solved(clf, trainable)

    def compared(self, solutions):
        """Return relative differences at every alpha, and whether both chose the same one."""
        cells, same = [], ""
        for alpha, (expected, chosen) in self.solutions.items():
            found, mine = solutions[alpha]
            cells.append(f"{float((found - expected).norm() / expected.norm()):.1e}")
            if alpha is None:
                same = f"{mine:.3g}, {chosen:.3g}"
        return [*cells, *[""] * (2 - len(cells)), same]


def measure(
    X, y, precision, pixels, k, drift, trainable="norm", forget=100, pieces=20
) -> Iterator[list[str]]:
    """Give table rows: what, deletion, differences at a constant alpha and "auto", both alphas."""
    what = f"{trainable}, {precision}, {pixels} px, k = {k:,}"
    given = trainable, precision, pixels, k
    rest = X[forget:], y[forget:]
    expected = Reference(make(*given).partial_fit(*rest, classes=CLASSES), trainable)
    clf = make(*given).partial_fit(X, y, classes=CLASSES)
    clf.unlearn(X[:forget])
    yield [what, f"{forget} of {len(X):,} rows at once", *expected.compared(all_solved(clf, trainable))]
    clf.partial_fit(X[:forget], y[:forget])
    step = forget // pieces
    for start in range(0, forget, step):
        clf.unlearn(X[start : start + step])
    again = f"the same rows, {pieces} deletions of {step} (after learning them again)"
    yield [what, again, *expected.compared(all_solved(clf, trainable))]
    if drift:
        other = make(*given, batch_size=20).partial_fit(*rest, classes=CLASSES)
        yield [
            what,
            "refit with batches of 20 instead of 32",
            *expected.compared(all_solved(other, trainable)),
        ]
        threads = torch.get_num_threads()
        other_threads = 1 if threads > 1 else 2
        torch.set_num_threads(other_threads)
        other = make(*given).partial_fit(*rest, classes=CLASSES)
        torch.set_num_threads(threads)
        how = f"refit with {other_threads} threads, not {threads}"
        yield [what, how, *expected.compared(all_solved(other, trainable))]


def one_by_one(X, y, pixels, k, n, alpha) -> list[str]:
    """Return a table row of n deletions of a single row each, solved each time."""
    given = "ladder", "float32", pixels, k
    clf = make(*given, alpha=alpha).partial_fit(X, y, classes=CLASSES)
    for start in range(n):
        clf.unlearn(X[start : start + 1])
    found = all_solved(clf, "ladder")
    refit = make(*given, alpha=alpha).partial_fit(X[n:], y[n:], classes=CLASSES)
    if alpha == "auto":
        assert clf.alpha_ == refit.alpha_, (clf.alpha_, refit.alpha_)
    what = f"ladder, float32, {pixels} px, k = {k:,}"
    how = f"{n:,} of {len(X):,} rows, one at a time, alpha = {alpha}"
    return [what, how, *Reference(refit, "ladder").compared(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--forget", type=int, default=100)
    parser.add_argument("--pixels", type=int, default=96)
    parser.add_argument("--components", type=int, default=4096)
    parser.add_argument("--single", type=int, default=1000, help="deletions of one row")
    args = parser.parse_args()
    k, sizes = args.components, (args.forget, min(20, args.forget))
    X, y = training_images(args.rows + args.forget)
    few = args.rows
    lines = []
    for trainable in ("ladder", "norm"):
        for precision in ("float32", "float64"):
            drift = precision == "float32"
            data = X[:few], y[:few], precision, args.pixels, k, drift, trainable
            for line in measure(*data, *sizes):
                print(line, flush=True)
                lines.append(line)
    for alpha, n in ((0.1, args.single), ("auto", args.single // 10)):
        rows = slice(n + args.forget)
        lines.append(one_by_one(X[rows], y[rows], min(64, args.pixels), min(k, 1024), n, alpha))
        print(lines[-1], flush=True)
    header = ["trained", "deletion", "difference, constant alpha", 'difference, "auto"']
    header += ["alpha_, and the refit's"]
    publish(
        "exactness",
        table(header, lines)
        + "\n\nRelative difference (Frobenius norm) to a refit without the rows; the constant alpha is "
        '0.1 of a ladder and 0.25 of tangents, for which "auto" chooses nothing.',
    )


if __name__ == "__main__":
    main()
