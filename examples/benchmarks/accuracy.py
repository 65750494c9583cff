"""Accuracy of the ladder against a linear probe, tangents of norm layers, and SGD.

Fashion-MNIST through lite0, and emoji in colour. Hyper-parameters of all contestants are chosen on
validation rows, which no draw learns or tests; learning rates at the smallest number of rows and kept.
Every measurement is a line of accuracy.csv, so that a run goes on where it was; ``--tables`` writes them
into the page.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import sgd
import torch
from _common import COMMIT, PAGES, emoji, fashion_mnist, put, stamp, table

from fastntk_sk import FastNTKClassifier
from fastntk_sk.preprocessing import Rows
from fastntk_sk.solvers import solve_schur

RESULTS = Path(__file__).with_suffix(".csv")
FIELDS = ("task", "rows", "draw", "model", "setting", "split", "accuracy", "seconds", "commit")
CHOOSE = -1  # the draw on which hyper-parameters are chosen
DRAWS = (0, 1, 2)
SIZES = (1000, 3000, 5000)


@dataclass(frozen=True)
class Task:
    """Data, backbone and size of pictures.

    Parameters
    ----------
    name, backbone : str

    pixels : int

    sizes : tuple of int
        Numbers of training rows.

    split : callable
        From draw and number of rows to three pairs: training, validation and test rows.

    linear_sizes : tuple of int, default=()
        Numbers of rows without SGD; `sizes` where empty.
    """

    name: str
    backbone: str
    pixels: int
    sizes: tuple[int, ...]
    split: Callable[[int, int], dict[str, tuple[np.ndarray, np.ndarray]]]
    linear_sizes: tuple[int, ...] = ()


def fashion(draw: int, n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return rows of Fashion-MNIST; draws of up to 5,000 rows share none."""
    X, y, X_test, y_test = fashion_mnist()
    order = np.random.default_rng(0).permutation(len(X))
    held_out, rest = order[:2000], np.roll(order[2000:], -5000 * (draw + 1))
    return {
        "training": (X[rest[:n]], y[rest[:n]]),
        "validation": (X[held_out], y[held_out]),
        "test": (X_test, y_test),
    }


@cache
def _emoji() -> tuple[np.ndarray, np.ndarray]:
    return emoji()


def pictures(draw: int, n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return rows of emoji: 300 for choices, the same in every draw; n of the others to learn."""
    X, y = _emoji()
    held_out, rest = np.split(np.random.default_rng(0).permutation(len(X)), [300])
    training, test = np.split(np.random.default_rng(draw + 2).permutation(rest), [n])
    parts = {"training": training, "validation": held_out, "test": test}
    return {name: (X[rows], y[rows]) for name, rows in parts.items()}


TASKS = {
    task.name: task
    for task in (
        Task("fashion 64", "tf_efficientnet_lite0", 64, SIZES, fashion, (300, *SIZES, 20000)),
        Task("fashion 128", "tf_efficientnet_lite0", 128, (3000,), fashion),
        Task("emoji", "tf_efficientnet_lite0", 64, (800,), pictures),
    )
}


class Results:
    """Lines of accuracy.csv: what was measured before is not measured again."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, ...], dict[str, str]] = {}
        if RESULTS.exists():
            with RESULTS.open(newline="") as file:
                for line in csv.DictReader(file):
                    self.lines[tuple(line[name] for name in FIELDS[:6])] = line

    def accuracy(self, *key: object) -> float | None:
        """Return what was measured of task, rows, draw, model, setting and split."""
        line = self.lines.get(tuple(map(str, key)))
        return None if line is None else float(line["accuracy"])

    def add(self, *key: object, accuracy: float, seconds: float) -> None:
        """Append a line."""
        new = [*map(str, key), f"{accuracy:.4f}", f"{seconds:.1f}", COMMIT]
        self.lines[tuple(new[:6])] = dict(zip(FIELDS, new, strict=True))
        with RESULTS.open("a", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            writer = csv.writer(file)
            if not file.tell():
                writer.writerow(FIELDS)
            writer.writerow(new)
        print(*new, flush=True)


def measure_sgd(
    results: Results, task: Task, n: int, draw: int, kind: str, setting: str, split: str
) -> float:
    """Return the accuracy of one training by SGD."""
    key = (task.name, n, draw, f"SGD, {kind}", setting, split)
    found = results.accuracy(*key)
    if found is not None:
        return found
    rows = task.split(draw, n)
    rate, epochs, batch_norm = setting.split(", ")
    started = time.perf_counter()
    trained = sgd.train(
        kind,
        task.backbone,
        task.pixels,
        *rows["training"],
        rate=float(rate),
        epochs=int(epochs.removesuffix(" epochs")),
        seed=max(draw, 0),
        batch_norm=batch_norm.removesuffix(" batch norm"),
    )
    seconds = time.perf_counter() - started
    accuracy = trained.score(*rows[split])
    results.add(*key, accuracy=accuracy, seconds=seconds)
    return accuracy


@dataclass(frozen=True)
class Linear:
    """A model whose classes read features that they share: one pass serves every alpha.

    Parameters
    ----------
    trainable : str

    k : int
        Of a ladder's features.
    """

    trainable: str
    k: int = 4096

    @property
    def name(self) -> str:
        return self.trainable if self.trainable == "head" else f"{self.trainable}, k = {self.k}"


LINEAR = (
    Linear("head"),
    *(Linear(side, k) for side in ("ladder-grid", "ladder-gap", "ladder") for k in (1024, 4096)),
)
ALPHAS = tuple(float(f"{10 ** (e / 4):.3g}") for e in range(-10, 5))  # 0.003 to 10


def measure_linear(results: Results, task: Task, n: int, draw: int, linear: Linear) -> None:
    """Measure every alpha of one model, on validation rows for the choice and on test rows else."""
    split = "validation" if draw == CHOOSE else "test"
    keys = {a: (task.name, n, draw, linear.name, f"alpha {a:g}", split) for a in ALPHAS}
    if all(results.accuracy(*key) is not None for key in keys.values()):
        return
    rows, started = task.split(draw, n), time.perf_counter()
    clf = FastNTKClassifier(
        task.backbone,
        trainable=linear.trainable,
        n_components=linear.k,
        image_size=task.pixels,
        random_state=max(draw, 0),
    ).fit(*rows["training"])
    seconds, state = time.perf_counter() - started, clf._state
    X, y = rows[split]
    batches = state.model.batches(Rows(X, state.model.backbone.spec))
    shared = torch.cat([state.model.tangents(batch)[0] for batch in batches]).double()
    scales = {"tangent_scale": 1.0, "target_scale": 1.0}
    for alpha, key in keys.items():
        W = solve_schur(state.statistics, alpha=alpha, **scales).W
        accuracy = float(((shared @ W.T).argmax(1).numpy() == y).mean())
        results.add(*key, accuracy=accuracy, seconds=seconds)


NOTES = """

Mean and standard error of the test accuracy in percent over draws of training rows (how many stands in
parentheses); differences are paired by draw. Learning rates, and whether batch norms keep their
pretrained statistics, are chosen on validation rows at the smallest number of rows; alpha at each one.
SGD: AdamW, one cycle, batches of 50. Every measurement stands in accuracy.csv with its commit."""

RATES = {
    "norm": (1e-3, 2e-3, 4e-3, 8e-3),
    "ladder + norm": (5e-4, 1e-3, 2e-3, 4e-3),
    "all weights": (1e-4, 3e-4, 1e-3),
    "all weights, mirrored": (3e-4, 1e-3),
}


def choose_sgd(results: Results, task: Task, kind: str, epochs: int = 15) -> str:
    """Return the setting of one kind of SGD that is best on validation rows at the smallest size.

    Of both states of batch norms where all weights are trained; the grid of rates grows until its best
    value is not at its edge.
    """
    states = ("frozen", "running") if kind.startswith("all") else ("frozen",)
    n, factor = task.sizes[0], 2.0 if not kind.startswith("all") else 3.0
    best = ""
    for state in states:
        rates = list(RATES[kind])
        while True:
            settings = [f"{rate:.2g}, {epochs} epochs, {state} batch norm" for rate in rates]
            scores = [
                measure_sgd(results, task, n, CHOOSE, kind, setting, "validation")
                for setting in settings
            ]
            top = int(np.argmax(scores))
            if 0 < top < len(rates) - 1 or len(rates) > 6:
                break
            rates = [rates[0] / factor, *rates] if top == 0 else [*rates, rates[-1] * factor]
        before = results.accuracy(task.name, n, CHOOSE, f"SGD, {kind}", best, "validation")
        if before is None or scores[top] > before:
            best = settings[top]
    return best


def table_of(results: Results, task: Task) -> str:
    """Return the test accuracies of one task, each model with the setting that validation chose."""
    opponents = ("SGD, norm", "SGD, ladder + norm", *(f"SGD, {kind}" for kind in sgd.KINDS[2:]))
    lines, better = [], list[str]()
    for n in task.linear_sizes or task.sizes:
        found = {}
        for model in (*(linear.name for linear in LINEAR), *opponents):
            n_chosen = n if not model.startswith("SGD") else task.sizes[0]
            tried = {
                setting: float(line["accuracy"])
                for (*of, setting, _), line in results.lines.items()
                if of == [task.name, str(n_chosen), str(CHOOSE), model]
            }
            if tried:
                best = max(tried, key=tried.__getitem__)
                tests = [results.accuracy(task.name, n, draw, model, best, "test") for draw in DRAWS]
                found[model] = best, {d: 100 * t for d, t in enumerate(tests) if t is not None}
        for model, (setting, tests) in found.items():
            if not tests:
                continue
            line = [n, model, setting, _summary([*tests.values()])]
            for other in ("SGD, norm", "SGD, all weights"):
                _, theirs = found.get(other, ("", {}))
                line.append(_summary([tests[d] - theirs[d] for d in tests.keys() & theirs.keys()]))
            lines.append(line)
        ladders = [
            np.mean([*t.values()]) for name, (_, t) in found.items() if t and name[:6] == "ladder"
        ]
        full = [*found.get("SGD, all weights", ("", {}))[1].values()]
        if full and ladders and np.mean(full) > max(ladders):
            better.append(f"{np.mean(full) - max(ladders):.1f} points at {n:,} rows")
    header = ["rows", "model", "chosen on validation", "test %", "minus SGD, norm", "minus SGD, all"]
    first = f"SGD of all weights is better than every ladder by {', '.join(better)}." if better else ""
    return f"**{task.name}**, {task.backbone}\n\n{table(header, lines)}\n\n{first}".rstrip()


def _summary(values: list[float]) -> str:
    """Return mean, standard error and number of draws."""
    if not values:
        return "not measured"
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{error} ({len(values)})"


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=[*TASKS], choices=[*TASKS])
    parser.add_argument("--sgd", nargs="*", default=[*sgd.KINDS], choices=[*sgd.KINDS])
    parser.add_argument("--no-linear", action="store_true", help="measure SGD alone")
    parser.add_argument("--tables", action="store_true", help="write what was measured to the page")
    args = parser.parse_args()
    results = Results()
    if args.tables:
        parts = [table_of(results, TASKS[name]) for name in args.tasks]
        text = "\n\n".join(parts) + NOTES + "\n\n" + stamp("benchmarks/accuracy.py")
        print(text)
        put(PAGES[0], "ladder", text)
        return
    for name in args.tasks:
        task = TASKS[name]
        for linear in () if args.no_linear else LINEAR:
            for n in task.linear_sizes or task.sizes:
                for draw in (CHOOSE, *DRAWS):
                    measure_linear(results, task, n, draw, linear)
        chosen = {kind: choose_sgd(results, task, kind) for kind in args.sgd}
        for n in task.sizes:
            for draw in DRAWS:
                for kind in args.sgd:
                    measure_sgd(results, task, n, draw, kind, chosen[kind], "test")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
