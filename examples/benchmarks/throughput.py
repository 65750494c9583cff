"""Images a second that are learned, against a forward pass: kernels, precisions, numbers of classes.

lite0 (norm subset, ImageNet weights) and ViT-B/32 (10 prompt tokens, random weights), 224 px.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from _common import interleaved, linearized, publish, table
from torch import Tensor

from fastntk_sk.heap import kept_heap

NETWORKS = {
    "lite0, norm": {"source": "tf_efficientnet_lite0", "trainable": "norm"},
    "ViT-B/32, prompt": {
        "source": "vit_base_patch32_224",
        "trainable": "prompt",
        "pretrained": False,
    },
}


@kept_heap()
def passes(name: str) -> list[list[object]]:
    """Return table rows of one backbone: the passes alone."""
    model = linearized(**NETWORKS[name], pixels=224, n_components=64, batch_size=8)
    net, tangent, V = model.backbone.net, model.tangent, model.readout
    x = model.backbone.synthetic(model.batch_size, 0, None, torch.float32)
    readouts = {"full, 10 classes": V, "pseudo, 3 directions": V[:3]}

    @torch.no_grad()
    def forward(low: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return net(x)

    def jacobian(readout: Tensor, low: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            return tangent.jacobian(x, readout)[1]

    calls = {}
    for precision in ("float32", "bfloat16"):
        low = precision == "bfloat16"
        calls["forward", precision] = lambda low=low: forward(low)
        for kernel, readout in readouts.items():
            calls[kernel, precision] = lambda r=readout, low=low: jacobian(r, low)
    seconds = interleaved({c: f for c, f in calls.items() if c[1] == "float32"}, repeats=3)
    # one turn: without instructions for it, bfloat16 is emulated
    seconds |= interleaved({c: f for c, f in calls.items() if c[1] == "bfloat16"}, repeats=1)
    errors = {}
    for kernel, readout in readouts.items():
        exact, rounded = (jacobian(readout, low).flatten(1) for low in (False, True))
        errors[kernel] = float(((rounded - exact).norm(dim=1) / exact.norm(dim=1)).median())
    unit = seconds["forward", "float32"]
    return [
        [
            name,
            kernel,
            precision,
            f"{model.batch_size / taken:.1f}",
            f"{taken / unit:.1f}",
            f"{errors[kernel]:.1%}" if precision == "bfloat16" and kernel in errors else "",
        ]
        for (kernel, precision), taken in seconds.items()
    ]


def learning(n_classes: int, kernel: str) -> Callable[[], None]:
    """Return what learns 256 rows of a problem with so many classes, sums included."""
    model = linearized(
        "tf_efficientnet_lite0",
        trainable="norm",
        n_classes=n_classes,
        kernel=kernel,
        pixels=64,
        n_components=1024,
        batch_size=8,
    )
    rows = np.random.default_rng(0).integers(0, 256, size=(256, 3, 64, 64), dtype=np.uint8)
    labels, statistics = np.arange(256) % n_classes, model.empty_statistics()
    return lambda: model.learn(statistics, rows, labels, np.ones(256))


def main() -> None:
    rows = [row for name in NETWORKS for row in passes(name)]
    header = ["backbone", "pass", "precision", "images / s", "float32 forwards", "Jacobian error"]
    text = table(header, rows) + (
        "\n\nMedians of 3 turns (bfloat16: one), batches of 8, all within "
        "`kept_heap`, as the estimator's passes are. The error is the median over images of the "
        "relative difference to float32. FastNTKClassifier refuses bfloat16 where the error on "
        "synthetic rows is above 5 %, which is the case for the batch norms of a CNN. "
        "Whether bfloat16 is faster depends on the processor having instructions for it."
    )
    calls = {(c, "pseudo"): learning(c, "pseudo") for c in (2, 10, 100, 1000)}
    calls |= {(c, "full"): learning(c, "full") for c in (2, 10)}
    seconds = interleaved(calls, repeats=3)
    unit = seconds[10, "pseudo"]
    rows = [
        [kernel, f"{c:,}", f"{1000 * taken / 256:.1f}", f"{taken / unit:.2f}"]
        for (c, kernel), taken in seconds.items()
    ]
    text += "\n\n" + table(["kernel", "classes", "ms an image", "times pseudo with 10"], rows)
    text += (
        "\n\nlite0 at 64 px, k = 1,024 components (of each of 3 directions for pseudo): 256 images "
        "learned, passes and sums."
    )
    publish("throughput", text)


if __name__ == "__main__":
    main()
