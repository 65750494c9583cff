"""What learning and predicting a row cost in forward passes of the backbone, with the default ladder.

lite0 with its ImageNet weights, 10 classes, k = 4,096. Pictures are resized before: what counts is
passes, and the sums where rows are learned.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _common import in_new_process, interleaved, linearized, publish, table

from fastntk_sk.tangents.model import Parameters

BATCH, CLASSES, K = 32, 10, 4096


def measure(pixels: int, threads: int, rows: int, repeats: int) -> dict[str, float]:
    """Return median seconds of all rows, measured in turns."""
    torch.set_num_threads(threads)
    model = linearized(
        "tf_efficientnet_lite0",
        trainable="ladder",
        pixels=pixels,
        n_components=K,
        n_classes=CLASSES,
        batch_size=BATCH,
    )
    draws = np.random.default_rng(0)
    pictures = draws.integers(256, size=(rows, 3, pixels, pixels), dtype=np.uint8)
    labels, weights = np.arange(rows) % CLASSES, np.ones(rows)
    statistics = model.empty_statistics()
    readout = torch.randn(CLASSES, model.d + 1, generator=torch.Generator().manual_seed(0))
    parameters = Parameters(readout, torch.zeros(0))

    @torch.no_grad()
    def forward(net: torch.nn.Module) -> None:
        for batch in model.batches(pictures):  # within kept_heap, as all the library's passes are
            net(batch)

    calls = {
        "timm": lambda: forward(model.backbone.net),
        "forward": lambda: forward(model.tangent.net),  # convolutions as the ladder has them
        "learn": lambda: model.learn(statistics, pictures, labels, weights),
        "predict": lambda: model.scores(parameters, pictures),
    }
    return interleaved(calls, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    lines = []
    for pixels in args.pixels:
        for threads in args.threads:
            found, _ = in_new_process(
                "pass_cost",
                "measure",
                pixels=pixels,
                threads=threads,
                rows=args.rows,
                repeats=args.repeats,
            )
            lines.append([pixels, threads, *(f"{found[name]:.2f}" for name in found)])
            lines[-1] += [
                f"{found[what] / found[unit]:.2f}"
                for what in ("learn", "predict")
                for unit in ("forward", "timm")
            ]
            print(lines[-1], flush=True)
    header = ["pixels", "threads", "forward, timm's", "forward", "learn", "predict"]
    header += [f"{what} / {unit}" for what in ("learn", "predict") for unit in ("forward", "timm's")]
    publish(
        "pass_cost",
        table(header, lines)
        + f"\n\nSeconds of {args.rows:,} pictures, medians of {args.repeats} turns; then ratios. "
        "Learning is the pass of the ladder and the sums; predicting is the same pass and the readout "
        f"of {CLASSES} classes. timm's network is as it is loaded; that of the other columns has the "
        "same weights and does without the padded copies that timm makes for TensorFlow's convolutions. "
        f"All in batches of {BATCH}, normalising included, with freed memory kept.",
    )


if __name__ == "__main__":
    main()
