"""Time and memory of fit and unlearn over the rows n, the classes C, the subset p and the components k.

lite0 at 32 px, ImageNet weights, Fashion-MNIST images; every line in a process of its own.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from _common import in_new_process, publish, resident, table, training_images

from fastntk_sk import FastNTKClassifier, load_recipe

PSEUDO = {"kernel": "pseudo", "n_components": 1024}
FULL = {"kernel": "full", "n_components": 1024}
# what changes along a line of the picture; the rest is as in CENTRE
CENTRE = {"n": 2_000, "n_classes": 10}
SWEEPS = {
    "rows n, pseudo": [{"n": n, **PSEUDO} for n in (500, 5_000, 50_000)],
    "rows n, full": [{"n": n, **FULL} for n in (500, 5_000)],
    "classes C, pseudo": [{"n_classes": c, **PSEUDO} for c in (2, 10, 100, 1_000)],
    "classes C, full": [{"n_classes": c, **FULL} for c in (2, 10, 100)],
    "components k, pseudo": [{**PSEUDO, "n_components": k} for k in (256, 1_024, 4_096)],
    "components k, full": [{**FULL, "n_components": k} for k in (256, 1_024, 4_096)],
    "parameters p, pseudo": [{"trainable": t, **PSEUDO} for t in ("bias", "norm", "full")],
}
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


def main() -> None:
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    recipe = load_recipe("tf_efficientnet_lite0")
    p = {"full": recipe.n_weights, **recipe.trainable}
    rows = []
    for name, points in SWEEPS.items():
        for point in points:
            settings = CENTRE | point
            x = {"n": settings["n"], "C": settings["n_classes"], "k": settings["n_components"]}
            x["p"] = p[settings.get("trainable", "norm")]
            costs, _ = in_new_process("scaling", "learn_and_forget", **settings)
            found.setdefault(name, []).append((x[name.split(",")[0][-1]], costs))
            rows.append(
                [
                    settings["kernel"],
                    *(f"{value:,}" for value in x.values()),
                    f"{costs['fit']:.1f}",
                    f"{1000 * costs['fit'] / x['n']:.1f}",
                    f"{costs['unlearn']:.2f}",
                    f"{costs['fit'] / costs['unlearn']:.1f}",
                    f"{costs['peak'] / 2**20:,.0f}",
                ]
            )
            print(rows[-1], flush=True)
    header = ["kernel", *"nCkp", "fit, s", "ms an image", f"forget {FORGET}, s", "fit / forget", "MiB"]
    picture(found)
    publish(
        "scaling",
        table(header, rows)
        + "\n\nlite0 at 32 px. MiB is what the process grew by, beyond the backbone and the images."
        "\n\n![Seconds and MiB over rows, classes, components and parameters](scaling.svg)",
    )


def picture(found: dict[str, list[tuple[int, dict[str, float]]]]) -> None:
    """Draw time and memory over what is varied, one panel each."""
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys(name.split(",")[0] for name in found))
    figure, axes = plt.subplots(2, len(panels), figsize=(14, 7), layout="constrained", sharey="row")
    for column, panel in zip(axes.T, panels, strict=True):
        for name, points in found.items():
            if not name.startswith(panel + ","):
                continue
            x, costs = zip(*points, strict=True)
            colour = "tab:blue" if name.endswith("pseudo") else "tab:orange"
            kernel = name.split(", ")[1]
            for what, line in (("fit", "-"), ("unlearn", "--")):
                label = f"{what}, {kernel}" if what == "fit" else f"forget {FORGET}, {kernel}"
                column[0].plot(x, [c[what] for c in costs], "o" + line, color=colour, label=label)
            column[1].plot(x, [c["peak"] / 2**20 for c in costs], "o-", color=colour, label=kernel)
        column[0].set(title=panel, xscale="log", yscale="log")
        column[1].set(xlabel=panel, xscale="log", yscale="log")
        for ax in column:
            ax.xaxis.set_minor_formatter("")
            ax.grid(alpha=0.3)
            ax.legend(fontsize=8)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("MiB")
    figure.savefig(Path(__file__).with_suffix(".svg"))
    plt.close(figure)


if __name__ == "__main__":
    main()
