"""What forgetting 100 rows costs against refitting and SGD retraining, by width and by rows learned.

Fashion-MNIST at 64 px through lite0, default ladder, at a constant alpha of 0.1 and at "auto", where the
sums choose it again after every deletion. Deletions are measured in a fresh process that loads the saved
state, so that peak memory is theirs: the first makes a factorisation, which the second one goes on from.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import sgd
from _common import (
    HERE,
    in_new_process,
    picture,
    publish,
    resident,
    table,
    training_images,
    with_alpha,
)

from fastntk_sk import FastNTKClassifier

BACKBONE, PIXELS, ALPHA, EPOCHS = "tf_efficientnet_lite0", 64, 0.1, 15
SOLVES = {f"alpha {ALPHA}": ALPHA, 'alpha "auto"': None}
# what accuracy.py chose on validation rows
OPPONENTS = {
    "norm": {"rate": 0.008, "batch_norm": "frozen"},
    "all weights": {"rate": 0.003, "batch_norm": "running"},
}
Costs = dict[str, dict[str, float]]


def forget(file: str, alpha: float | None, seed: int) -> dict[str, float]:
    """Load a state, forget twice 100 rows, and return the seconds of both."""
    X, _ = training_images(200, seed)
    clf = FastNTKClassifier.load(file)
    clf = with_alpha(clf, alpha)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    seconds = []
    for start in (0, 100):
        begun = time.perf_counter()
        clf.unlearn(X[start : start + 100])
        seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds[0], "next": seconds[1], "peak": resident("VmHWM")}


def forget_elsewhere(clf: FastNTKClassifier, seed: int) -> Costs:
    """Return what deletions cost in fresh processes, by how alpha is set."""
    with tempfile.TemporaryDirectory() as folder:
        clf.save(file := f"{folder}/state")
        return {
            name: in_new_process("deletion_cost", "forget", file=file, alpha=alpha, seed=seed)[0]
            for name, alpha in SOLVES.items()
        }


def retraining(kind: str, X: np.ndarray, y: np.ndarray) -> float:
    """Return the seconds of all epochs of SGD, from those of the first two."""
    seconds = []
    for epochs in (1, 2):
        begun = time.perf_counter()
        sgd.train(kind, BACKBONE, PIXELS, X, y, epochs=epochs, **OPPONENTS[kind])
        seconds.append(time.perf_counter() - begun)
    print("SGD", kind, seconds, flush=True)
    return seconds[0] + (EPOCHS - 1) * (seconds[1] - seconds[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, nargs=3, default=[1000, 5000, 10_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--width", type=int, default=4096, help="of all but the table by width")
    args = parser.parse_args()
    few, n, many = args.rows
    X, y = training_images(many, args.seed)

    def make(k: int) -> FastNTKClassifier:
        return FastNTKClassifier(
            BACKBONE, image_size=PIXELS, n_components=k, alpha=ALPHA, random_state=0
        )

    def learned(clf: FastNTKClassifier, part: slice) -> FastNTKClassifier:
        return clf.partial_fit(X[part], y[part], classes=np.arange(10))

    by_rows = {few: forget_elsewhere(learned(make(args.width), slice(few)), args.seed)}
    by_width: dict[int, Costs] = {}
    for k in sorted({*args.widths, args.width}):
        begun = time.perf_counter()
        clf = learned(make(k), slice(100, n))
        if k == args.width:
            refit = time.perf_counter() - begun
        by_width[k] = forget_elsewhere(learned(clf, slice(100)), args.seed)
        print(k, by_width[k], f"{psutil.virtual_memory().available:,} bytes free", flush=True)
        if k == args.width:
            by_rows[n] = by_width[k]
            by_rows[many] = forget_elsewhere(learned(clf, slice(n, many)), args.seed)
            print(by_rows, flush=True)
    units = [by_width[args.width][name]["seconds"] for name in SOLVES]
    compared = {f"forget 100 of {n:,} rows, {name}": s for name, s in zip(SOLVES, units, strict=True)}
    compared[f"fit on the other {n - 100:,}, alpha {ALPHA}"] = refit
    for kind in OPPONENTS:
        subset = "norm layers and readout" if kind == "norm" else kind
        compared[f"SGD of {subset} on the other {n - 100:,}, {EPOCHS} epochs"] = retraining(
            kind, X[100:n], y[100:n]
        )
    draw(compared)
    lines = [[name, f"{s:.1f}", *(f"{s / unit:.1f}" for unit in units)] for name, s in compared.items()]
    header = ["", "seconds", *(f"times a deletion at {name}" for name in SOLVES)]
    text = "![Seconds of a deletion, a refit and two retrainings](deletion_cost.svg)\n\n"
    text += table(header, lines) + (
        f"\n\nlite0 at {PIXELS} px, default ladder, k = {args.width:,}. SGD with the settings that "
        f"accuracy.py chose; its seconds are those of the first epoch and {EPOCHS - 1} times those that "
        "a second one adds.\n\n"
    )
    text += _costs("k", by_width) + f"\n\n100 of {n:,} rows, by width.\n\n"
    text += _costs("rows learned", by_rows) + f"\n\nk = {args.width:,}, by rows learned. "
    text += "Ratios are to the first line."
    publish("deletion_cost", text)


def draw(compared: dict[str, float]) -> None:
    """Draw the seconds of deletions, of a refit and of retrainings."""
    with picture(HERE / "deletion_cost.svg", 1, 1, figsize=(9, 2.4)) as axes:
        ax = axes[0, 0]
        for name, seconds in reversed(compared.items()):
            colour = "tab:blue" if name.startswith("forget") else "tab:orange"
            ax.plot(seconds, name, "o", markersize=9, color=colour)
            told = {"textcoords": "offset points", "va": "center"}
            ax.annotate(f"{seconds:,.1f}", (seconds, name), (9, 0), **told)
        ax.set(xscale="log", xlabel="seconds")
        ax.margins(0.15)


def _costs(what: str, measured: dict[int, Costs]) -> str:
    """Return a table of seconds and peaks, each also as a ratio to the first line."""
    base = next(iter(measured.values()))
    header, lines = [what], [[f"{value:,}"] for value in measured]
    for name in SOLVES:
        header += [f"seconds to forget 100, {name}", "ratio", "the next 100", "peak GiB", "ratio"]
        for line, costs in zip(lines, measured.values(), strict=True):
            line += [
                f"{costs[name]['seconds']:.2f}",
                f"{costs[name]['seconds'] / base[name]['seconds']:.2f}",
                f"{costs[name]['next']:.2f}",
                f"{costs[name]['peak'] / 2**30:.2f}",
                f"{costs[name]['peak'] / base[name]['peak']:.3f}",
            ]
    return table(header, lines)


if __name__ == "__main__":
    main()
