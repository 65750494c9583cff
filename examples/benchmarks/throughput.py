"""Images a second that are learned, against a forward pass: kernels, precisions, numbers of classes.

lite0 (ImageNet weights) and ViT-B/32 (random weights) at 224 px: the default ladder, and tangents of
norm layers and of 10 prompt tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from _common import interleaved, linearized, publish, table
from torch import Tensor, nn

from fastntk_sk.tangents.threads import kept_heap

NETWORKS = {
    "lite0": {"source": "tf_efficientnet_lite0", "trainable": "norm"},
    "ViT-B/32": {
        "source": "vit_base_patch32_224",
        "trainable": "prompt",
        "pretrained": False,
    },
}


@kept_heap()
def passes(name: str, pixels: int) -> list[list[object]]:
    """Return table rows of one backbone: the passes alone."""
    sizes = {"pixels": pixels, "batch_size": 8}
    model = linearized(**NETWORKS[name], n_components=64, **sizes)
    ladder = linearized(**NETWORKS[name] | {"trainable": "ladder"}, n_components=4096, **sizes).ladder
    trained = NETWORKS[name]["trainable"]
    net, tangent, V = model.backbone.net, model.tangent, model.directions
    x = model.backbone.synthetic(model.batch_size, 0, None, torch.float32)
    readouts = {f"{trained}, full, 10 classes": V, f"{trained}, pseudo, 3 directions": V[:3]}

    @torch.no_grad()
    def forward(network: nn.Module, low: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return network(x).float()

    def jacobian(readout: Tensor, low: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return tangent.jacobian(x, readout)[1]

    found = {"ladder": lambda low: forward(ladder, low)}
    found |= {name: lambda low, V=readout: jacobian(V, low) for name, readout in readouts.items()}

    calls = {}
    for precision in ("float32", "bfloat16"):
        low = precision == "bfloat16"
        calls["forward", precision] = lambda low=low: forward(net, low)
        for what, call in found.items():
            calls[what, precision] = lambda call=call, low=low: call(low)
    seconds = interleaved({c: f for c, f in calls.items() if c[1] == "float32"}, repeats=3)
    # one turn: without instructions for it, bfloat16 is emulated
    seconds |= interleaved({c: f for c, f in calls.items() if c[1] == "bfloat16"}, repeats=1)
    errors = {}
    for what, call in found.items():
        exact, rounded = (call(low).flatten(1) for low in (False, True))
        errors[what] = float(((rounded - exact).norm(dim=1) / exact.norm(dim=1)).median())
    unit = seconds["forward", "float32"]
    return [
        [
            name,
            what,
            precision,
            f"{model.batch_size / taken:.1f}",
            f"{taken / unit:.1f}",
            f"{errors[what]:.1%}" if precision == "bfloat16" and what in errors else "",
        ]
        for (what, precision), taken in seconds.items()
    ]


def learning(n_classes: int, kind: str, pixels: int) -> Callable[[], None]:
    """Return what learns 256 rows of a problem with so many classes, sums included."""
    model = linearized(
        "tf_efficientnet_lite0",
        trainable="ladder" if kind == "ladder" else "norm",
        n_classes=n_classes,
        kernel="full" if kind == "ladder" else kind,
        pixels=pixels,
        n_components=1024,
        batch_size=8,
    )
    rows = np.random.default_rng(0).integers(0, 256, size=(256, 3, pixels, pixels), dtype=np.uint8)
    labels, statistics = np.arange(256) % n_classes, model.empty_statistics()
    return lambda: model.learn(statistics, rows, labels, np.ones(256))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pixels", type=int, nargs=2, default=[224, 64], help="of both tables")
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    args = parser.parse_args()
    large, small = args.pixels
    rows = [row for name in args.networks for row in passes(name, large)]
    header = ["backbone", "pass", "precision", "images / s", "float32 forwards", "error"]
    speeds = {tuple(row[:3]): float(row[3]) for row in rows}
    slower = [
        f"{name}, {what}"
        for (name, what, precision), speed in speeds.items()
        if precision == "bfloat16" and speed < speeds[name, what, "float32"]
    ]
    text = table(header, rows) + (
        f"\n\nSlower in bfloat16 than in float32 here: {'; '.join(slower) or 'none'}. Medians of 3 "
        "turns (bfloat16: one), batches of 8, all within `kept_heap`, as are the estimator's passes. "
        "The error is the median over images of the relative difference to float32, of a ladder's "
        "features and of a subset's Jacobians. FastNTKClassifier refuses bfloat16 where that of "
        "Jacobians is above 5 % on synthetic rows, as with the batch norms of a CNN, or where a "
        "ladder's predictions change by more than 10 %. Whether bfloat16 is faster depends on the "
        "processor having instructions for it."
    )
    numbers = {"ladder": (2, 10, 100, 1000), "pseudo": (2, 10, 100, 1000), "full": (2, 10)}
    calls = {(c, kind): learning(c, kind, small) for kind, of in numbers.items() for c in of}
    seconds = interleaved(calls, repeats=3)
    rows = [
        [
            kind,
            f"{c:,}",
            f"{1000 * taken / 256:.1f}",
            f"{taken / seconds[10, kind]:.2f}",
            f"{taken / seconds[10, 'ladder']:.2f}",
        ]
        for (c, kind), taken in seconds.items()
    ]
    header = ["trained", "classes", "ms an image", "times itself with 10", "times the ladder with 10"]
    text += "\n\n" + table(header, rows)
    text += (
        f"\n\nlite0 at {small} px, k = 1,024: a ladder, and norm layers with the pseudo kernel (k of "
        "each of 3 directions) and the full one. 256 images learned, passes and sums."
    )
    publish("throughput", text)


if __name__ == "__main__":
    main()
