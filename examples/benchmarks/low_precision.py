"""Learning a ladder in bfloat16: its speed, its accuracy, and how far its predictions move.

Fashion-MNIST; lite0 with its ImageNet weights, others with random ones. Predictions are in full
precision both times, as the estimator's are.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _common import interleaved, linearized, publish, table, training_images

from fastntk_sk.backbones.inputs import Rows
from fastntk_sk.sums.ridge import solve
from fastntk_sk.tangents import linearize

NETWORKS = {
    "tf_efficientnet_lite0": {},
    "resnet18": {"pretrained": False},
    "convnext_atto": {"pretrained": False},
    "vit_tiny_patch16_224": {"pretrained": False},
}


def measure(network: str, pixels: int, k: int, n_rows: int, n_test: int, repeats: int) -> list[str]:
    """Return what one network gives at one size."""
    X, y = training_images(n_rows + n_test)
    scores, calls = {}, {}
    for precision in ("float32", "bfloat16"):
        model = linearized(
            network,
            trainable="ladder",
            pixels=pixels,
            n_components=k,
            precision=precision,
            **NETWORKS[network],
        )
        rows, held_out = (list(Rows(part, model.backbone.spec)) for part in (X[:n_rows], X[n_rows:]))
        sums = model.empty_statistics()
        model.learn(sums, rows, y[:n_rows], np.ones(n_rows))
        solution = solve(sums, alpha=None, tangent_scale=1.0, target_scale=1.0)
        scores[precision] = model.scores(model.publish(solution.W, solution.z), held_out)
        some, empty = rows[:256], model.empty_statistics()
        labels = y[: len(some)]
        calls[precision] = lambda m=model, s=empty, r=some, t=labels: m.learn(s, r, t, np.ones(len(r)))
    fine, coarse = scores["float32"], scores["bfloat16"]
    seconds = interleaved(calls, repeats)
    accuracies = [f"{np.mean(each.argmax(1) == y[n_rows:]):.2%}" for each in (fine, coarse)]
    speeds = [f"{min(256, n_rows) / seconds[precision]:.0f}" for precision in calls]
    changed = np.linalg.norm(coarse - fine) / np.linalg.norm(fine)
    other = np.mean(coarse.argmax(1) != fine.argmax(1))
    synthetic = linearize.change_of_predictions(model)
    return [*speeds, *accuracies, f"{other:.2%}", f"{changed:.1%}", f"{synthetic:.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    parser.add_argument("--components", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--test-rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    lines = []
    for network in args.networks:
        for pixels in args.pixels:
            found = measure(network, pixels, args.components, args.rows, args.test_rows, args.repeats)
            lines.append([network, pixels, *found])
            print(lines[-1], flush=True)
    header = ["backbone", "pixels", "images / s, float32", "bfloat16", "accuracy, float32", "bfloat16"]
    header += ["other labels", "change of scores", "on synthetic rows"]
    publish(
        "low_precision",
        table(header, lines)
        + f"\n\nA ladder with k = {args.components:,} and alpha='auto', learned from {args.rows:,} "
        f"training images and scored on {args.test_rows:,} others of them. Images a second are of "
        f"learning, sums included, medians of {args.repeats} turns. Changes are relative; that on "
        "synthetic rows is what FastNTKClassifier looks at: bfloat16 is refused above "
        f"{linearize.LARGEST_CHANGE:.0%}. torch uses {torch.get_num_threads()} thread(s), "
        f"{torch.backends.cpu.get_cpu_capability()}.",
    )


if __name__ == "__main__":
    main()
