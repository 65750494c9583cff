"""What learning and predicting a row cost in forward passes of the backbone, and where that time goes.

lite0 with its ImageNet weights, 10 classes, the default numbers of components. Pictures are resized
before: what counts is passes, and the sums where rows are learned.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from _common import in_new_process, interleaved, linearized, publish, table

from fastntk_sk.tangents.model import Parameters

CLASSES = 10
LEARNED = [
    ("ladder", "full", "ladder"),
    ("norm", "pseudo", "norm, pseudo kernel, r = 3"),
    ("norm", "full", f"norm, full kernel, {CLASSES} classes"),
]
# each call of `measure` does what the one before does, and this too
PARTS = {
    "input": "input",
    "forward": "backbone",
    "pooled": "pooling",
    "ladder": "sketch",
    "passes": "own thread",
    "learn": "sums",
}


def measure(
    pixels: int,
    threads: int,
    rows: int,
    repeats: int,
    trainable: str = "ladder",
    kernel: str = "full",
    batch_size: int | str = "auto",
) -> dict[str, float]:
    """Return median seconds of all rows, measured in turns; of tangents only the passes that learn."""
    torch.set_num_threads(threads)
    model = linearized(
        "tf_efficientnet_lite0",
        trainable=trainable,
        kernel=kernel,
        pixels=pixels,
        n_components="auto",
        n_classes=CLASSES,
        batch_size=batch_size,
    )
    draws = np.random.default_rng(0)
    pictures = draws.integers(256, size=(rows, 3, pixels, pixels), dtype=np.uint8)
    labels, weights = np.arange(rows) % CLASSES, np.ones(rows)
    statistics = model.empty_statistics()
    readout = torch.randn(CLASSES, model.d + 1, generator=torch.Generator().manual_seed(0))
    parameters = Parameters(readout, torch.zeros(0))

    @torch.no_grad()
    def each(function: Callable[[torch.Tensor], object]) -> None:
        for batch in model.batches(pictures):  # within kept_heap, as all the library's passes are
            function(batch)

    calls = {
        "forward": lambda: each(model.tangent.net),  # convolutions as the ladder has them
        "learn": lambda: model.learn(statistics, pictures, labels, weights),
    }
    if model.ladder is not None:
        calls |= {
            "timm": lambda: each(model.backbone.net),
            "predict": lambda: model.scores(parameters, pictures),
            "input": lambda: each(lambda batch: None),
            "pooled": lambda: each(model.ladder.pooled),
            "ladder": lambda: each(model.ladder),
            "passes": lambda: deque(model.all_tangents(pictures), maxlen=0),
        }
    return interleaved(calls, repeats) | {"batch": model.settings.batch_size}


def profile(found: dict[str, float], rows: int) -> dict[str, float]:
    """Return the milliseconds that a row takes in each part of the pass that learns it."""
    until = [1000 * found[call] / rows for call in PARTS]
    return dict(zip(PARTS.values(), np.diff(until, prepend=0).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=None, help="rows of a batch; auto by default")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    fewer = max(32, args.rows // 8)  # where a row of tangents takes many passes
    lines, profiles, learned = [], [], []
    for pixels in args.pixels:
        for threads in args.threads:
            seconds = []
            for trainable, kernel, _ in LEARNED:
                given = {"pixels": pixels, "threads": threads, "repeats": args.repeats}
                given["batch_size"] = args.batch or "auto"
                given |= {"trainable": trainable, "kernel": kernel}
                given["rows"] = args.rows if trainable == "ladder" else fewer
                seconds.append(in_new_process("pass_cost", "measure", **given)[0])
                print(given, seconds[-1], flush=True)
            found = seconds[0]
            names = ("timm", "forward", "learn", "predict")
            lines.append([pixels, threads, found["batch"], *(f"{found[name]:.2f}" for name in names)])
            lines[-1] += [
                f"{found[what] / found[unit]:.2f}"
                for what in ("learn", "predict")
                for unit in ("forward", "timm")
            ]
            parts = profile(found, args.rows)
            total = sum(parts.values())
            shares = (f"{part:.3f} ({part / total:.0%})" for part in parts.values())
            profiles.append([pixels, threads, f"{total:.2f}", *shares])
            learned.append([pixels, threads, *(f"{s['learn'] / s['forward']:.2f}" for s in seconds)])
    header = ["pixels", "threads", "batch", "forward, timm's", "forward", "learn", "predict"]
    header += [f"{what} / {unit}" for what in ("learn", "predict") for unit in ("forward", "timm's")]
    publish(
        "pass_cost",
        table(header, lines)
        + f"\n\nSeconds of {args.rows:,} pictures, medians of {args.repeats} turns; then ratios. "
        "Learning is the pass of the ladder and the sums; predicting is the same pass and the readout "
        f"of {CLASSES} classes. timm's network is as it is loaded; that of the other columns has the "
        "same weights and does without the padded copies that timm makes for TensorFlow's convolutions. "
        "All in batches of the ladder's size, normalising included, with freed memory kept.\n\n"
        + table(["pixels", "threads", "learn", *PARTS.values()], profiles)
        + "\n\nMilliseconds of a row that the ladder learns, and the share of each part: differences of "
        "medians. Pooling includes roots. The passes of a call run in a thread of their own, in memory "
        "that is fresh: a call pays for that, however many rows it has. Sums include the check for "
        "numbers that are not finite.\n\n"
        + table(["pixels", "threads", *(name for *_, name in LEARNED)], learned)
        + "\n\nForward passes of the same network that learning a row costs, sums included; tangents of "
        f"{fewer} pictures.",
    )


if __name__ == "__main__":
    main()
