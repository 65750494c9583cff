"""Time and memory of fit and unlearn over the rows n, the classes C, the subset p and the components k.

The ladder, which is the default, beside the tangents of norm layers with both kernels. lite0 at 32 px,
ImageNet weights, Fashion-MNIST images; every line in a process of its own. What 1,000 classes cost the
default ladder is measured at 64 px, in turns with 10.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from _common import HERE, in_new_process, picture, publish, resident, table, training_images

from fastntk_sk import FastNTKClassifier, load_recipe

LADDER = {"trainable": "ladder", "n_components": 1024, "alpha": 0.1}
PSEUDO = {"trainable": "norm", "kernel": "pseudo", "n_components": 1024, "alpha": 0.25}
FULL = {**PSEUDO, "kernel": "full"}
# what changes along a line of the picture; the rest is as in CENTRE
CENTRE = {"n": 2_000, "n_classes": 10}
SWEEPS = {
    "rows n, ladder": [{"n": n, **LADDER} for n in (500, 5_000, 50_000)],
    "rows n, pseudo": [{"n": n, **PSEUDO} for n in (500, 5_000)],
    "rows n, full": [{"n": n, **FULL} for n in (500, 5_000)],
    "classes C, ladder": [{"n_classes": c, **LADDER} for c in (2, 10, 100, 1_000)],
    "classes C, pseudo": [{"n_classes": c, **PSEUDO} for c in (2, 10, 1_000)],
    "classes C, full": [{"n_classes": c, **FULL} for c in (2, 10)],
    "components k, ladder": [{**LADDER, "n_components": k} for k in (256, 1_024, 4_096, 8_192)],
    "components k, pseudo": [{**PSEUDO, "n_components": k} for k in (256, 1_024, 4_096)],
    "components k, full": [{**FULL, "n_components": k} for k in (256, 1_024, 4_096)],
    "parameters p, pseudo": [{**PSEUDO, "trainable": t} for t in ("bias", "norm", "full")],
}
COLOURS = {"ladder": "tab:green", "pseudo": "tab:blue", "full": "tab:orange"}
FORGET = 100


def learn_and_forget(n: int, n_classes: int, **settings: object) -> dict[str, float]:
    """Return seconds, and by how many bytes the process grew at most."""
    X, _ = training_images(n)
    y = np.arange(n) % n_classes  # a cost does not depend on what the labels mean
    clf = FastNTKClassifier("tf_efficientnet_lite0", image_size=32, random_state=0, **settings)
    clf.fit(X[:8], y[:8], classes=np.arange(n_classes))  # imports, weights
    before = resident("VmRSS")
    start = time.perf_counter()
    clf.fit(X, y)
    fitted = time.perf_counter()
    clf.unlearn(X[:FORGET])
    return {
        "fit": fitted - start,
        "unlearn": time.perf_counter() - fitted,
        "peak": resident("VmHWM") - before,
    }


def by_classes(n: int, pixels: int, classes: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Return median seconds of fits of the default ladder, measured in turns, at both kinds of alpha.

    The sums do not depend on alpha: with "auto" the same sums are solved once more.
    """
    X, _ = training_images(n)
    seconds: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        for n_classes in classes:
            rows = n if turn else 64  # imports, weights, memory
            clf = FastNTKClassifier(
                "tf_efficientnet_lite0", image_size=pixels, alpha=0.1, random_state=0
            )
            start = time.perf_counter()
            clf.fit(X[:rows], np.arange(rows) % n_classes, classes=np.arange(n_classes))
            fit = time.perf_counter() - start
            if not turn:
                continue
            state = clf._state
            solved = state.with_settings(alpha=None).solve()
            auto = fit - state.seconds_per_solve + solved.seconds_per_solve
            seconds.setdefault(f"constant {n_classes}", []).append(fit)
            seconds.setdefault(f"auto {n_classes}", []).append(auto)
            print(turn, n_classes, fit, auto, flush=True)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sweeps", nargs="+", default=[*SWEEPS], choices=[*SWEEPS])
    parser.add_argument("--rows", type=int, default=5000, help="to compare 1,000 classes with 10")
    parser.add_argument("--pixels", type=int, default=64, help="of the same")
    args = parser.parse_args()
    classes, _ = in_new_process(
        "scaling", "by_classes", n=args.rows, pixels=args.pixels, classes=(10, 1000), repeats=3
    )
    print(classes, flush=True)
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    recipe = load_recipe("tf_efficientnet_lite0")
    p = {"full": recipe.n_weights, **recipe.trainable}
    rows = []
    for name in args.sweeps:
        kind = name.split(", ")[1]
        for point in SWEEPS[name]:
            settings = CENTRE | point
            x = {"n": settings["n"], "C": settings["n_classes"], "k": settings["n_components"]}
            x["p"] = p.get(settings["trainable"], 0)
            costs, _ = in_new_process("scaling", "learn_and_forget", **settings)
            found.setdefault(name, []).append((x[name.split(",")[0][-1]], costs))
            rows.append(
                [
                    kind,
                    *(f"{value:,}" if value else "" for value in x.values()),
                    f"{costs['fit']:.1f}",
                    f"{1000 * costs['fit'] / x['n']:.1f}",
                    f"{costs['unlearn']:.2f}",
                    f"{costs['fit'] / costs['unlearn']:.1f}",
                    f"{costs['peak'] / 2**20:,.0f}",
                ]
            )
            print(rows[-1], flush=True)
    header = ["trained", *"nCkp", "fit, s", "ms an image", f"forget {FORGET}, s", "fit / forget", "MiB"]
    draw(found)
    publish(
        "scaling",
        "![Seconds and MiB over rows, classes, components and parameters](scaling.svg)\n\n"
        + table(header, rows)
        + "\n\nlite0 at 32 px; ladders at alpha = 0.1, tangents of norm layers (but for the last lines) "
        "with the pseudo and the full kernel. MiB is what the process grew by, beyond the backbone and "
        "the images.\n\n"
        f"A fit of the default ladder (k = 4,096) on {args.rows:,} images at {args.pixels} px costs "
        "with 1,000 classes "
        f"{classes['constant 1000'] / classes['constant 10']:.2f} times what it costs with 10 at a "
        f"constant alpha ({classes['constant 1000']:.1f} and {classes['constant 10']:.1f} seconds, "
        f"medians of 3 turns), and {classes['auto 1000'] / classes['auto 10']:.2f} times with "
        f'alpha="auto" ({classes["auto 1000"]:.1f} and {classes["auto 10"]:.1f}).',
    )


def draw(found: dict[str, list[tuple[int, dict[str, float]]]]) -> None:
    """Draw time and memory over what is varied, one panel each."""
    panels = list(dict.fromkeys(name.split(",")[0] for name in found))
    file = HERE / "scaling.svg"
    with picture(file, 2, len(panels), figsize=(14, 7), sharey="row") as axes:
        for column, panel in zip(axes.T, panels, strict=True):
            for name, points in found.items():
                if name.startswith(f"{panel},"):
                    lines(column, name.split(", ")[1], points)
            column[0].set(title=panel, xscale="log", yscale="log")
            column[1].set(xlabel=panel, xscale="log", yscale="log")
            for ax in column:
                ax.xaxis.set_minor_formatter("")
                ax.legend(fontsize=8)
        axes[0, 0].set_ylabel("seconds")
        axes[1, 0].set_ylabel("MiB")


def lines(column: np.ndarray, kind: str, points: list[tuple[int, dict[str, float]]]) -> None:
    """Draw seconds into the upper axes, and memory into the lower ones."""
    x, costs = zip(*points, strict=True)
    colour = COLOURS[kind]
    for what, name, line in (("fit", "fit", "o-"), ("unlearn", f"forget {FORGET}", "o--")):
        column[0].plot(x, [c[what] for c in costs], line, color=colour, label=f"{name}, {kind}")
    column[1].plot(x, [c["peak"] / 2**20 for c in costs], "o-", color=colour, label=kind)


if __name__ == "__main__":
    main()
