"""Accuracy of the ladder against a linear probe, tangents of a subset, and SGD.

Fashion-MNIST through lite0, and emoji in colour through lite0 and a pretrained ViT-S/14.
Hyper-parameters of all contestants are chosen on validation rows, which no draw learns or tests;
learning rates at the smallest number of rows and kept. Every measurement is a line of accuracy.csv, so
that a run goes on where it was; ``--tables`` writes them into the page. ``--tangents`` measures
tangents alone, ``--epochs 30`` longer SGD at the smallest number of rows.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pretrained_vit
import sgd
import torch
from _common import (
    COMMIT,
    PAGES,
    emoji,
    fashion_mnist,
    folded,
    mean_and_error,
    picture,
    put,
    stamp,
    table,
    with_error,
)
from one_pass import ROWS_AT_ONCE, Linear, OnePass

from fastntk_sk.backbones.inputs import Rows
from fastntk_sk.sums.ridge import solve_each
from fastntk_sk.sums.statistics import Statistics

RESULTS = Path(__file__).with_suffix(".csv")
FIELDS = ("task", "rows", "draw", "model", "setting", "split", "accuracy", "seconds", "commit")
CHOOSE = -1  # the draw on which hyper-parameters are chosen
DRAWS = (0, 1, 2)
SIZES = (1000, 3000, 5000)
LINEAR = (
    Linear("head"),
    *(Linear(side, k) for side in ("ladder-grid", "ladder-gap", "ladder") for k in (1024, 4096)),
    Linear("ladder", 8192, only=(1000, 5000)),
    Linear("ladder", mirrored=True, only=(800, *SIZES)),
)
ALPHAS = tuple(float(f"{10 ** (e / 4):.3g}") for e in range(-10, 5))  # 0.003 to 10
CONSTANT, AUTO = "alpha 0.1", "alpha auto"
TANGENT_ALPHAS = (0.05, 0.25, 1.25)
EPOCHS = 15


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
        Numbers of rows without SGD; `sizes` where empty. Smaller ones are the first rows of larger ones.

    linear : tuple of Linear, default=LINEAR

    tangents : tuple of str, default=("norm",)
        The subsets whose tangents `measure_tangents` takes.

    kinds, draws : default=sgd.OF_CNN and DRAWS
        Of SGD.

    rates_of : str, default=""
        The task whose choices SGD takes over; its own where empty.

    local : bool, default=False
        `backbone` is in the folder of `pretrained_vit`.
    """

    name: str
    backbone: str
    pixels: int
    sizes: tuple[int, ...]
    split: Callable[[int, int], dict[str, tuple[np.ndarray, np.ndarray]]]
    linear_sizes: tuple[int, ...] = ()
    linear: tuple[Linear, ...] = LINEAR
    tangents: tuple[str, ...] = ("norm",)
    kinds: tuple[str, ...] = sgd.OF_CNN
    draws: tuple[int, ...] = DRAWS
    rates_of: str = ""
    local: bool = False


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
        Task(
            "fashion 128",
            "tf_efficientnet_lite0",
            128,
            (3000,),
            fashion,
            linear=tuple(linear for linear in LINEAR if not linear.mirrored),
            tangents=(),
            kinds=("norm", "all weights"),
            draws=(0,),
            rates_of="fashion 64",
        ),
        Task("emoji", "tf_efficientnet_lite0", 64, (800,), pictures),
        Task(
            "emoji ViT",
            pretrained_vit.ARCHITECTURE,
            98,
            (800,),
            pictures,
            tangents=("prompt", "norm"),
            kinds=sgd.OF_VIT,
            local=True,
        ),
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


def chosen(results: Results, task: str, n: int, model: str, epochs: int | None = None) -> str:
    """Return the setting of a model that is best on validation rows; "" where none was tried."""
    tried = {
        setting: float(line["accuracy"])
        for (*of, setting, _), line in results.lines.items()
        if of == [task, str(n), str(CHOOSE), model]
        and setting != AUTO
        and (epochs is None or f", {epochs} epochs," in setting)
    }
    return max(tried, key=tried.__getitem__) if tried else ""


def missing(results: Results, task: Task, draw: int) -> dict[int, dict[Linear, list[str]]]:
    """Return the settings to measure, by number of rows: every alpha in the draw for choices."""
    split, found = "validation" if draw == CHOOSE else "test", {}
    for n in sorted(task.linear_sizes or task.sizes):
        found[n] = dict[Linear, list[str]]()
        for linear in task.linear:
            if linear.only and n not in linear.only:
                continue
            settings = [*(f"alpha {alpha:g}" for alpha in ALPHAS), AUTO]
            if draw != CHOOSE:
                best = chosen(results, task.name, n, linear.name)
                settings = [*dict.fromkeys((best, CONSTANT, AUTO))]
            key = (task.name, n, draw, linear.name)
            todo = [s for s in settings if results.accuracy(*key, s, split) is None]
            if todo:
                found[n][linear] = todo
    return {n: linears for n, linears in found.items() if linears}


def measure_linear(results: Results, task: Task, draw: int) -> None:
    """Measure all linear models of a draw: one forward pass a row, sums of nested sets, all alphas.

    Seconds are those of the draw until a model was solved, of all models together.
    """
    todo = missing(results, task, draw)
    if not todo:
        return
    started, rows = time.perf_counter(), task.split(draw, max(todo))
    (X, y), n_classes = rows["training"], 1 + max(int(y.max()) for _, y in rows.values())
    last = {linear: n for n, linears in todo.items() for linear in linears}
    arguments = task.backbone, task.pixels, max(draw, 0), n_classes
    models = {linear: linear.model(*arguments) for linear in last}
    sums = {linear: model.empty_statistics() for linear, model in models.items()}
    readouts: dict[Linear, list[torch.Tensor]] = {linear: [] for linear in models}
    keys: dict[Linear, list[tuple[object, ...]]] = {linear: [] for linear in models}
    seconds: dict[tuple[object, ...], float] = {}
    features = OnePass(models)
    for start, n in pairwise((0, *todo)):
        needed = [linear for linear, n_last in last.items() if n_last >= n]
        for first in range(start, n, ROWS_AT_ONCE):
            part = slice(first, min(first + ROWS_AT_ONCE, n))
            for linear, x in features(X[part], needed).items():
                add(sums[linear], x, y[part])
        for linear, settings in todo[n].items():
            alphas = [None if s == AUTO else float(s.removeprefix("alpha ")) for s in settings]
            solutions = solve_each(sums[linear], alphas, tangent_scale=1.0, target_scale=1.0)
            readouts[linear] += [solution.W for solution in solutions]
            new = [(n, draw, linear.name, setting) for setting in settings]
            keys[linear] += new
            seconds |= dict.fromkeys(new, time.perf_counter() - started)
    sums.clear()
    split = "validation" if draw == CHOOSE else "test"
    (X, y), stacked = rows[split], {linear: torch.cat(W).T for linear, W in readouts.items()}
    right = {linear: np.zeros(len(of), int) for linear, of in keys.items()}
    for first in range(0, len(y), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        for linear, x in features(X[part], [*models]).items():
            scores = (x.double().mean(0) @ stacked[linear]).unflatten(1, (-1, n_classes))
            right[linear] += (scores.argmax(2).numpy() == y[part, None]).sum(0)
    for linear, of in keys.items():
        for key, n_right in zip(of, right[linear], strict=True):
            results.add(task.name, *key, split, accuracy=n_right / len(y), seconds=seconds[key])


def add(sums: Statistics, x: torch.Tensor, y: np.ndarray) -> None:
    """Add views of the same rows, of shape (views, n, width + 1), with a total weight of one each."""
    labels = torch.from_numpy(np.tile(y, len(x)))
    weights = torch.full(labels.shape, 1 / len(x), dtype=torch.float64)
    x = x.flatten(0, 1)
    sums.add(x, x.new_zeros(len(x), len(sums.counts), 0), labels, weights)


def tangents_of(subset: str) -> str:
    """Return the name of the model that reads the tangents of a subset."""
    return f"{subset} tangents, k = {Linear(subset).k}"


def measure_tangents(results: Results, task: Task, subset: str) -> None:
    """Measure tangents of a subset, with an alpha that is chosen at each number of rows."""
    tangents, model = Linear(subset), tangents_of(subset)
    for n in task.sizes:
        for draw in (CHOOSE, *DRAWS):
            settings = [f"alpha {alpha:g}" for alpha in TANGENT_ALPHAS]
            if draw != CHOOSE:
                settings = [chosen(results, task.name, n, model)]
            split = "validation" if draw == CHOOSE else "test"
            keys = {setting: (task.name, n, draw, model, setting, split) for setting in settings}
            if all(results.accuracy(*key) is not None for key in keys.values()):
                continue
            rows, started = task.split(draw, n), time.perf_counter()
            clf = tangents.classifier(task.backbone, task.pixels, max(draw, 0))
            state, (X, y) = clf.fit(*rows["training"])._state, rows[split]
            seconds = time.perf_counter() - started
            for setting, key in keys.items():
                solved = state.with_settings(alpha=float(setting.removeprefix("alpha "))).solve()
                scores = solved.model.scores(solved.parameters, Rows(X, solved.model.backbone.spec))
                accuracy = float((scores.argmax(1) == y).mean())
                results.add(*key, accuracy=accuracy, seconds=seconds)


DEFAULT = "ladder, k = 4096"
SHORT = (
    ("linear probe", "exact", "head"),
    ("tangents of norm layers", "exact, linearised", "norm tangents, k = 4096"),
    ("ladder, the default", "exact", DEFAULT),
    ("norm layers and readout, SGD", "train again", "SGD, norm"),
    ("norm layers and ladder, SGD", "train again", "SGD, ladder + norm"),
    ("all weights, SGD", "train again", "SGD, all weights"),
)
DRAWN = {
    DEFAULT: ("ladder, the default", "tab:blue"),
    "head": ("linear probe", "tab:gray"),
    "norm tangents, k = 4096": ("tangents of norm layers", "tab:olive"),
    "prompt tangents, k = 4096": ("tangents of prompts", "tab:brown"),
    "SGD, prompts": ("SGD, prompts", "tab:pink"),
    "SGD, norm": ("SGD, norm layers", "tab:orange"),
    "SGD, all weights": ("SGD, all weights", "tab:red"),
}
NOTES = """

Mean and standard error of the test accuracy in percent over draws of training rows (how many stands in
parentheses); differences are paired by draw. Learning rates, and whether batch norms keep their
pretrained statistics, are chosen on validation rows at the smallest number of rows (those of fashion 128
are the choices of fashion 64); alpha at each one. Beside it: the same model with a constant alpha, and
with alpha="auto". Mirrored ladders learn each picture and its mirror image with a weight of 1/2, and
average both scores; the sums take a picture and its mirror image for rows that have nothing to do with
each other, so that alpha="auto" is not the best choice there. SGD: AdamW, one cycle, batches of 50.
Every measurement stands in [accuracy.csv](accuracy.csv) with its commit."""
PICTURE = "![Test accuracy of all models](accuracy.svg)"

RATES = {
    "prompts": (2e-3, 4e-3, 8e-3),
    "norm": (1e-3, 2e-3, 4e-3, 8e-3),
    "ladder + norm": (5e-4, 1e-3, 2e-3, 4e-3),
    "all weights": (1e-4, 3e-4, 1e-3),
    "all weights, mirrored": (3e-4, 1e-3),
}


def choose_sgd(results: Results, task: Task, kind: str, epochs: int = EPOCHS) -> str:
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


def measured(results: Results, task: Task, n: int) -> dict[str, tuple[str, str, dict[int, float]]]:
    """Return key and setting of every model of a task, as validation chose it, and its accuracies."""
    tangents = map(tangents_of, task.tangents)
    found = {
        model: (model, chosen(results, task.name, n, model))
        for model in (*(linear.name for linear in LINEAR), *tangents)
    }
    of = TASKS[task.rates_of or task.name]
    for model in (f"SGD, {kind}" for kind in task.kinds):
        for epochs in (EPOCHS, 2 * EPOCHS):
            name = model if epochs == EPOCHS else f"{model}, {epochs} epochs"
            found[name] = model, chosen(results, of.name, of.sizes[0], model, epochs)
    return {
        name: (model, setting, _tests(results, task.name, n, model, setting))
        for name, (model, setting) in found.items()
    }


def table_of(results: Results, task: Task) -> str:
    """Return the test accuracies of one task, each model with the setting that validation chose."""
    lines = []
    for n in task.linear_sizes or task.sizes:
        found = measured(results, task, n)
        for name, (model, setting, accuracies) in found.items():
            if not accuracies:
                continue
            line = [n, name, setting, _summary([*accuracies.values()])]
            for other in (CONSTANT, AUTO):
                fixed = [*_tests(results, task.name, n, model, other).values()]
                line.append(_summary(fixed) if fixed else "")
            for other in ("SGD, norm", "SGD, all weights"):
                theirs = found[other][2] if other in found else {}
                both = accuracies.keys() & theirs.keys()
                line.append(_summary([accuracies[d] - theirs[d] for d in both]) if both else "")
            lines.append(line)
    header = ["rows", "model", "chosen on validation", "test %", CONSTANT, AUTO]
    header += ["minus SGD, norm", "minus SGD, all"]
    text = f"**{task.name}**, {task.backbone}\n\n{table(header, lines)}\n\n{better(results, task)}"
    return text.rstrip()


def better(results: Results, task: Task, on: str = "") -> str:
    """Return where SGD is better than the default ladder: its best kind, and than the best ladder."""
    parts = []
    for n in task.sizes:
        means = {
            name: np.mean([*accuracies.values()])
            for name, (_, _, accuracies) in measured(results, task, n).items()
            if accuracies
        }
        trained = {name: mean for name, mean in means.items() if name.startswith("SGD, ")}
        kind = max(trained, key=trained.__getitem__, default="")
        best = max(mean for name, mean in means.items() if name.startswith("ladder"))
        default = np.mean([*_tests(results, task.name, n, DEFAULT, AUTO).values()])
        ahead = trained.get(kind, 0) - default
        if ahead > 0:
            of = f", by {trained[kind] - best:.1f} than the best ladder" if trained[kind] > best else ""
            parts.append(f"{ahead:.1f} points at {n:,} rows ({kind.removeprefix('SGD, ')}{of})")
    return f"SGD is better than the default ladder{on} by {'; '.join(parts)}." if parts else ""


def short_table(results: Results) -> str:
    """Return the accuracies of the models that most readers compare."""
    columns = [("fashion 64", n) for n in SIZES] + [("emoji", 800)]
    lines = []
    for title, deletion, name in SHORT:
        line = [title, deletion]
        for task, n in columns:
            model, _, accuracies = measured(results, TASKS[task], n)[name]
            if model in ("head", DEFAULT):
                accuracies = _tests(results, task, n, model, AUTO)
            line.append(_summary([*accuracies.values()]))
        lines.append(line)
    header = ["trained", "deletion", *(f"Fashion-MNIST, {n:,} rows" for n in SIZES), "emoji, 800 rows"]
    said = [
        better(results, TASKS[task], f" on {title}")
        for task, title in (("fashion 64", "Fashion-MNIST"), ("emoji", "emoji"))
    ]
    return (
        f"{table(header, lines)}\n\n{' '.join(said)} Test accuracy in percent of EfficientNet-Lite0 at "
        "64 px: mean and standard error over draws of training rows (how many stands in parentheses); "
        'ladder and probe with alpha="auto", the others as validation rows chose.'
    )


def show(results: Results) -> None:
    """Draw test accuracy over rows on Fashion-MNIST, and beside it all models of emoji."""
    grown, *others = (TASKS[name] for name in ("fashion 64", "emoji", "emoji ViT"))
    with picture(RESULTS.with_suffix(".svg"), 1, 3, figsize=(13, 4)) as axes:
        for model, (title, colour) in DRAWN.items():
            points = []
            for n in grown.sizes:
                if accuracies := [*_drawn(results, grown, n, model).values()]:
                    points.append((n, *mean_and_error(accuracies)))
            if points:
                axes[0, 0].errorbar(*zip(*points, strict=True), fmt="o-", color=colour, label=title)
        axes[0, 0].set(xscale="log", xlabel="rows learned", ylabel="test accuracy, %", ylim=(76, 92))
        axes[0, 0].set_xticks(grown.sizes, [f"{n:,}" for n in grown.sizes])
        axes[0, 0].minorticks_off()
        axes[0, 0].set_title("Fashion-MNIST, EfficientNet-Lite0, 64 px")
        axes[0, 0].legend(fontsize=8, loc="lower right")
        for ax, task in zip(axes[0, 1:], others, strict=True):
            (n,) = task.sizes
            found = {
                title: (*mean_and_error([*accuracies.values()]), colour)
                for model, (title, colour) in DRAWN.items()
                if (accuracies := _drawn(results, task, n, model))
            }
            for title, (mean, error, colour) in reversed(found.items()):
                ax.errorbar(mean, title, xerr=error, fmt="o", color=colour)
                ax.annotate(
                    f"{mean:.1f}", (mean, title), (0, 7), textcoords="offset points", ha="center"
                )
            ax.set(xlabel="test accuracy, %", xlim=(60, 80))
            ax.margins(y=0.15)
            ax.set_title(f"emoji, {n} rows, {'ViT-S/14' if task.local else 'EfficientNet-Lite0'}")


def _drawn(results: Results, task: Task, n: int, model: str) -> dict[int, float]:
    """Return test accuracies of a model as drawn: with alpha="auto" where it has one."""
    found = measured(results, task, n).get(model)
    if found is None:
        return {}
    return _tests(results, task.name, n, model, AUTO) or found[2]


def _tests(results: Results, task: str, n: int, model: str, setting: str) -> dict[int, float]:
    """Return what was measured on test rows, in percent, by draw."""
    found = {draw: results.accuracy(task, n, draw, model, setting, "test") for draw in DRAWS}
    return {draw: 100 * accuracy for draw, accuracy in found.items() if accuracy is not None}


def _summary(values: list[float]) -> str:
    """Return mean, standard error and number of draws."""
    if not values:
        return "not measured"
    return f"{with_error(values, 2)} ({len(values)})"


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=[*TASKS], choices=[*TASKS])
    kinds = [*dict.fromkeys(sgd.OF_CNN + sgd.OF_VIT)]
    parser.add_argument("--sgd", nargs="*", default=kinds, choices=kinds)
    parser.add_argument("--epochs", type=int, default=EPOCHS, choices=[EPOCHS, 2 * EPOCHS])
    parser.add_argument("--no-linear", action="store_true", help="measure SGD alone")
    parser.add_argument("--tangents", action="store_true", help="measure tangents alone")
    parser.add_argument("--tables", action="store_true", help="write what was measured to the page")
    args = parser.parse_args()
    results = Results()
    if args.tables:
        parts = [table_of(results, TASKS[name]) for name in args.tasks]
        text = "\n\n".join([PICTURE, *parts]) + NOTES + "\n\n" + stamp("benchmarks/accuracy.py")
        print(text)
        show(results)
        put(PAGES[0], "ladder", folded(text))
        put(PAGES[0], "accuracy", f"{short_table(results)}\n\n{stamp('benchmarks/accuracy.py')}")
        return
    for task in (TASKS[name] for name in args.tasks):
        if task.local:
            task = replace(task, backbone=f"local-dir:{pretrained_vit.folder()}")
        if args.tangents:
            for subset in task.tangents:
                measure_tangents(results, task, subset)
            continue
        for draw in () if args.no_linear or args.epochs != EPOCHS else (CHOOSE, *DRAWS):
            measure_linear(results, task, draw)
        for kind in (kind for kind in task.kinds if kind in args.sgd):
            if args.epochs != EPOCHS and task.rates_of:
                continue
            setting = choose_sgd(results, TASKS[task.rates_of or task.name], kind, args.epochs)
            for n in task.sizes if args.epochs == EPOCHS else task.sizes[:1]:
                for draw in task.draws:
                    measure_sgd(results, task, n, draw, kind, setting, "test")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
