"""ViT-B/32 (88M parameters), 10 prompt tokens, 224 px, 10 classes: fit, forget 100, and SGD.

Fashion-MNIST images, enlarged; random weights, which cost what pretrained ones do.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from _common import in_new_process, linearized, publish, table, training_images

from fastntk_sk import FastNTKClassifier
from fastntk_sk.finetuning import SubspaceNetwork, finetune
from fastntk_sk.preprocessing import Rows

EPOCHS = 15


def learn_and_forget(kernel: str, n: int, precision: str) -> dict[str, float]:
    """Return the seconds of a fit and of a deletion of 100 rows."""
    X, y = training_images(n)
    clf = FastNTKClassifier(
        "vit_base_patch32_224",
        trainable="prompt",
        pretrained=False,
        kernel=kernel,
        precision=precision,
        random_state=0,
        verbose=1,
    )
    start = time.perf_counter()
    clf.fit(X, y)
    fitted = time.perf_counter()
    clf.unlearn(X[:100])
    return {"fit": fitted - start, "unlearn": time.perf_counter() - fitted}


def sgd_epoch(n: int, precision: str) -> dict[str, float]:
    """Return the seconds an image of an epoch of prompt tuning."""
    X, y = training_images(n)
    model = linearized(
        "vit_base_patch32_224",
        kernel="pseudo",  # SGD takes its network and subset alone
        trainable="prompt",
        pretrained=False,
        pixels=224,
        n_components=4096,
    )
    readout = torch.zeros(10, model.d + 1)
    net = SubspaceNetwork(model.backbone.net, model.tangent.subset, model.projection, readout)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        tuned = finetune(
            net,
            Rows(X, model.backbone.spec, 0),
            y,
            np.ones(n),
            max_epochs=2,
            learning_rate=2e-3,
            params=None,
            device="cpu",
            seed=0,
            verbose=0,
        )
    return {"seconds": tuned.history[-1]["dur"] / n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--precision", default="float32", help="of the passes, and of SGD's")
    args = parser.parse_args()
    n, precision = args.images, args.precision
    epoch, _ = in_new_process("large_vit", "sgd_epoch", n=200, precision=precision)
    retrain = epoch["seconds"] * EPOCHS * (n - 100)
    lines = []
    for kernel in ("pseudo", "full"):
        found, peak = in_new_process(
            "large_vit", "learn_and_forget", kernel=kernel, n=n, precision=precision
        )
        print(kernel, json.dumps(found), f"{peak:,}", flush=True)
        lines.append(
            [
                kernel,
                f"{found['fit'] / 60:.1f}",
                f"{found['unlearn']:.0f}",
                f"{peak / 2**30:.1f}",
                f"{found['fit'] / found['unlearn']:.0f}",
                f"{retrain / found['unlearn']:.0f}",
            ]
        )
    header = [
        "kernel",
        "fit, minutes",
        "forget 100, seconds",
        "peak GiB of the process",
        "fit / forget",
        "SGD retraining / forget",
    ]
    publish(
        "large_vit",
        table(header, lines)
        + f"\n\n{n:,} images, passes in {precision}, random weights. SGD: {EPOCHS} epochs of "
        f"prompt tuning on the other {n - 100:,}, extrapolated from the second epoch on 200 images to "
        f"{retrain / 60:.0f} minutes.",
    )


if __name__ == "__main__":
    main()
