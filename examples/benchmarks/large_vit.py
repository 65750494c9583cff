"""ViT-B/32 (88M parameters), 224 px, 10 classes: fit with the default ladder, forget 100, and SGD.

Fashion-MNIST images, enlarged; random weights, which cost what pretrained ones do. ``--models`` measures
tangents of 10 prompt tokens too.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from _common import in_new_process, linearized, publish, table, training_images, with_alpha

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.inputs import Rows
from fastntk_sk.training.finetuning import SubspaceNetwork, finetune

EPOCHS, ALPHA, BACKBONE = 15, 0.1, "vit_base_patch32_224"
MODELS = {
    "ladder": {"trainable": "ladder"},
    "prompt, pseudo": {"trainable": "prompt", "kernel": "pseudo"},
    "prompt, full": {"trainable": "prompt"},
}


def learn_and_forget(model: str, n: int, precision: str) -> dict[str, float]:
    """Return the seconds of a fit and of deletions of 100 rows: alpha="auto", then a constant one."""
    X, y = training_images(n)
    clf = FastNTKClassifier(
        BACKBONE, pretrained=False, precision=precision, random_state=0, verbose=1, **MODELS[model]
    )
    start = time.perf_counter()
    clf.fit(X, y)
    found = {"fit": time.perf_counter() - start}
    for place, alpha in enumerate((None, ALPHA)):
        clf = with_alpha(clf, alpha)
        start = time.perf_counter()
        clf.unlearn(X[100 * place : 100 * place + 100])
        found["auto" if alpha is None else "constant"] = time.perf_counter() - start
    return found


def sgd_epoch(n: int, precision: str) -> dict[str, float]:
    """Return the seconds an image of an epoch of prompt tuning."""
    X, y = training_images(n)
    model = linearized(
        BACKBONE,
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
    parser.add_argument("--models", nargs="+", default=["ladder"], choices=[*MODELS])
    parser.add_argument(
        "--precision",
        nargs="+",
        default=["float32", "bfloat16"],
        choices=["float32", "bfloat16"],
        help="of the passes, and of SGD's",
    )
    parser.add_argument("--sgd-images", type=int, default=200)
    args = parser.parse_args()
    n, lines, retrainings = args.images, [], []
    for precision in args.precision:
        epoch, _ = in_new_process("large_vit", "sgd_epoch", n=args.sgd_images, precision=precision)
        retrain = epoch["seconds"] * EPOCHS * (n - 100)
        retrainings.append(f"{retrain / 60:.0f} minutes in {precision}")
        for model in args.models:
            found, peak = in_new_process(
                "large_vit", "learn_and_forget", model=model, n=n, precision=precision
            )
            print(model, precision, json.dumps(found), f"{peak:,}", flush=True)
            lines.append(
                [
                    model,
                    precision,
                    f"{found['fit'] / 60:.1f}",
                    f"{found['constant']:.1f}",
                    f"{found['auto']:.1f}",
                    f"{peak / 2**30:.1f}",
                    f"{found['fit'] / found['constant']:.0f}",
                    f"{retrain / found['constant']:.0f}",
                ]
            )
            report(lines, retrainings, args)


def report(lines: list[list[str]], retrainings: list[str], args: argparse.Namespace) -> None:
    header = [
        "trained",
        "passes",
        "fit, minutes",
        f"forget 100, seconds, alpha {ALPHA}",
        'alpha "auto"',
        "peak GiB of the process",
        f"fit / forget, alpha {ALPHA}",
        f"SGD retraining / forget, alpha {ALPHA}",
    ]
    tangents = "" if args.models == ["ladder"] else ' Of prompts, "auto" is a constant 0.25.'
    publish(
        "large_vit",
        table(header, lines)
        + f'\n\n{args.images:,} images, fitted with alpha="auto"; random weights.{tangents} SGD: '
        f"{EPOCHS} epochs of tuning 10 prompt tokens on the other {args.images - 100:,}, extrapolated "
        f"from the second epoch on {args.sgd_images} images to {', '.join(retrainings)}.",
    )


if __name__ == "__main__":
    main()
