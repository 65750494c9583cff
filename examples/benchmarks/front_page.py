"""The table of the front page: accuracy, seconds of a fit and of a deletion, and what a deletion is.

Accuracies come from accuracy.csv, to which this script adds what a practitioner would try first:
logistic regression on features that are kept. Seconds are measured here, one model after the other, and
written to front_page_costs.csv. ``--tables`` measures nothing and writes the table.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sgd
import torch
from _common import COMMIT, publish, table, training_images, with_error
from accuracy import AUTO, CHOOSE, DEFAULT, DRAWS, EPOCHS, TASKS, Results, Task, chosen
from sklearn.linear_model import LogisticRegression

from fastntk_sk import FastNTKClassifier

COSTS = Path(__file__).with_name("front_page_costs.csv")
BACKBONE, PIXELS, ROWS, FORGET = "tf_efficientnet_lite0", 64, 1000, 100
COLUMNS = {
    "Fashion-MNIST, 1,000 rows": ("fashion 64", 1000),
    "Fashion-MNIST, 5,000 rows": ("fashion 64", 5000),
    "emoji, 800 rows": ("emoji", 800),
}
PROBE, TANGENTS = "logistic regression", "norm tangents, k = 4096"
SGD_NORM, SGD_ALL = "SGD, norm", "SGD, all weights"
LINES = {  # what is trained, what a deletion is, what it needs
    PROBE: ("linear probe on cached features", "refit: exact", "features of all others"),
    DEFAULT: ("ladder (the default)", "closed form: exact", "the rows that go"),
    TANGENTS: (
        "tangents of norm layers (Fast-NTK)",
        "closed form: exact for the linearised model",
        "the rows that go",
    ),
    SGD_NORM: ("SGD of norm layers and readout", "training again", "all other rows"),
    SGD_ALL: ("SGD of all weights", "training again", "all other rows"),
}
INVERSE_RIDGES = tuple(float(f"{10 ** (e / 2):.3g}") for e in range(-8, 1))  # 0.0001 to 1


@torch.no_grad()
def features(X: np.ndarray) -> np.ndarray:
    """Return what the last layer of the pretrained network reads."""
    network = sgd.Classifier("all weights", BACKBONE, PIXELS, 10).eval()
    parts = np.array_split(network.inputs(X), -(-len(X) // 32))
    return np.concatenate([network.net(network.normalised(part)).numpy() for part in parts])


def logistic(setting: str) -> LogisticRegression:
    return LogisticRegression(C=float(setting.removeprefix("C ")), max_iter=2000)


def measure_logistic(results: Results, task: Task, sizes: list[int]) -> None:
    """Measure logistic regression; C is chosen on validation rows, at each number of rows."""
    for draw in (CHOOSE, *DRAWS):
        split, todo = "validation" if draw == CHOOSE else "test", list[tuple[int, str]]()
        for n in sizes:
            settings = [f"C {inverse_ridge:g}" for inverse_ridge in INVERSE_RIDGES]
            if draw != CHOOSE:
                settings = [chosen(results, task.name, n, PROBE)]
            todo += [
                (n, setting)
                for setting in settings
                if results.accuracy(task.name, n, draw, PROBE, setting, split) is None
            ]
        if not todo:
            continue
        rows = task.split(draw, max(sizes))  # a smaller set is the first rows of a larger one
        (X, y), (X_held, y_held) = rows["training"], rows[split]
        x, x_held = features(X), features(X_held)
        for n, setting in todo:
            started = time.perf_counter()
            clf = logistic(setting).fit(x[:n], y[:n])
            seconds = time.perf_counter() - started
            key = task.name, n, draw, PROBE, setting, split
            results.add(*key, accuracy=clf.score(x_held, y_held), seconds=seconds)


def setting_of(results: Results, model: str, task: str, n: int) -> str:
    """Return the setting that validation rows chose; the default ladder has none to choose."""
    if model == DEFAULT:
        return AUTO
    if model.startswith("SGD"):
        return chosen(results, task, TASKS[task].sizes[0], model, EPOCHS)
    return chosen(results, task, n, model)


def seconds_of(fit: Callable[[], Any], forget: Callable[[Any], object]) -> tuple[float, float]:
    """Return the seconds of a fit and of a deletion from what it returned."""
    start = time.perf_counter()
    fitted = fit()
    middle = time.perf_counter()
    forget(fitted)
    return middle - start, time.perf_counter() - middle


def measure_costs(results: Results) -> None:
    """Measure the seconds of all models, and write them."""
    X, y = training_images(ROWS)
    settings = {model: setting_of(results, model, "fashion 64", ROWS) for model in LINES}

    def probe() -> np.ndarray:
        kept = features(X)
        logistic(settings[PROBE]).fit(kept, y)
        return kept

    def closed_form(trainable: str) -> tuple[float, float]:
        clf = FastNTKClassifier(BACKBONE, trainable=trainable, image_size=PIXELS, random_state=0)
        return seconds_of(lambda: clf.fit(X, y), lambda clf: clf.unlearn(X[:FORGET]))

    def by_sgd(model: str) -> tuple[float, float]:
        rate, _, batch_norm = settings[model].split(", ")

        def train(X: np.ndarray, y: np.ndarray) -> object:
            return sgd.train(
                model.removeprefix("SGD, "),
                BACKBONE,
                PIXELS,
                X,
                y,
                rate=float(rate),
                epochs=EPOCHS,
                batch_norm=batch_norm.removesuffix(" batch norm"),
            )

        return seconds_of(lambda: train(X, y), lambda _: train(X[FORGET:], y[FORGET:]))

    features(X[:FORGET])  # the first call reads libraries and weights
    measured = {
        PROBE: seconds_of(probe, lambda kept: logistic(settings[PROBE]).fit(kept[FORGET:], y[FORGET:])),
        DEFAULT: closed_form("ladder"),
        TANGENTS: closed_form("norm"),
        SGD_NORM: by_sgd(SGD_NORM),
        SGD_ALL: by_sgd(SGD_ALL),
    }
    with COSTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "rows", "fit_seconds", "forgotten", "forget_seconds", "commit"])
        for model, (fit, forget) in measured.items():
            writer.writerow([model, ROWS, f"{fit:.2f}", FORGET, f"{forget:.2f}", COMMIT])


def report(results: Results) -> None:
    """Write the table, and first of all below it where others do better."""
    with COSTS.open(newline="") as file:
        costs = {line["model"]: line for line in csv.DictReader(file)}
    accuracies, lines = {}, []
    for model, (trained, deletion, needs) in LINES.items():
        for column, (task, n) in COLUMNS.items():
            setting = setting_of(results, model, task, n)
            found = [results.accuracy(task, n, draw, model, setting, "test") for draw in DRAWS]
            accuracies[model, column] = [100 * one for one in found if one is not None]
        shown = [with_error(accuracies[model, column], 1) for column in COLUMNS]
        seconds = [f"{float(costs[model][f'{what}_seconds']):.1f}" for what in ("fit", "forget")]
        lines.append([trained, *shown, *seconds, deletion, needs])
    header = ["trained", *COLUMNS, f"fit {ROWS:,}, s", f"forget {FORGET}, s", "deletion", "needs"]
    better = [
        f"More accurate than {LINES[model][0]}: {LINES[peer][0]} by {points}."
        for model, peers in {DEFAULT: (SGD_ALL, SGD_NORM, PROBE), TANGENTS: (PROBE,)}.items()
        for peer in peers
        if (points := ahead(accuracies, peer, model))
    ]
    refit, deletion = (float(costs[model]["forget_seconds"]) for model in (PROBE, DEFAULT))
    if refit < deletion:
        better.append(
            f"Faster than the ladder's deletion ({deletion:.1f} s): the probe's refit ({refit:.2f} s)."
        )
    publish(
        "front_page",
        f"{table(header, lines)}\n\n{' '.join(better)} Test accuracy in percent of EfficientNet-Lite0 "
        f"at {PIXELS} px: mean and standard error of three draws of training rows (the mean alone is of "
        "one); settings are chosen on validation rows. The commit of each measurement stands in "
        "[accuracy.csv](examples/benchmarks/accuracy.csv) or "
        "[front_page_costs.csv](examples/benchmarks/front_page_costs.csv).",
    )


def ahead(accuracies: dict[tuple[str, str], list[float]], peer: str, model: str) -> str:
    """Return by how many points, and where, a peer is more accurate than a model."""
    gaps = {
        column: np.mean(accuracies[peer, column]) - np.mean(accuracies[model, column])
        for column in COLUMNS
    }
    return ", ".join(f"{gap:.1f} points ({column})" for column, gap in gaps.items() if gap > 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true", help="write what was measured to the page")
    results = Results()
    if not parser.parse_args().tables:
        sizes: dict[str, list[int]] = {}
        for task, n in COLUMNS.values():
            sizes.setdefault(task, []).append(n)
        for task, of_task in sizes.items():
            measure_logistic(results, TASKS[task], of_task)
        measure_costs(results)
    report(results)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
