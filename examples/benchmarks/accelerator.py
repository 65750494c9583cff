"""Images a second that an accelerator learns, forgets and predicts, and the backbone's share of that.

lite0 (ImageNet weights, where they are installed) and ViT-B/32 (random weights): a ladder, and tangents
of norm layers with the pseudo and the full kernel, k = 1,024, 10 classes. Pictures are resized before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _common import linearized, publish, table

from fastntk_sk.distributed import Ranks
from fastntk_sk.exceptions import WeightsUnavailableError
from fastntk_sk.state import State, Sums, sum_rows
from fastntk_sk.tangents.model import LinearizedModel
from fastntk_sk.tangents.threads import passing

NETWORKS = {"lite0": ("tf_efficientnet_lite0", True), "ViT-B/32": ("vit_base_patch32_224", False)}
KINDS: dict[str, dict[str, Any]] = {
    "ladder": {"trainable": "ladder"},
    "norm, pseudo, 3 directions": {"trainable": "norm", "kernel": "pseudo"},
    "norm, full, 10 classes": {"trainable": "norm"},
}


def settled(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def timed(device: str, call: Callable[[], Any]) -> tuple[float, Any]:
    settled(device)
    started = time.perf_counter()
    found = call()
    settled(device)
    return time.perf_counter() - started, found


def load(name: str, kind: str, **settings: Any) -> State:
    (source, pretrained), settings = NETWORKS[name], settings | {"n_components": 1024} | KINDS[kind]
    try:
        model = linearized(source, pretrained=pretrained, **settings)
    except WeightsUnavailableError:
        model = linearized(source, pretrained=False, **settings)
    return State.empty(model)


def measure(state: State, rows: int, forgotten: int) -> list[str]:
    """Return images a second, and the share of a fit in which the backbone computes."""
    model, size, device = state.model, state.settings.batch_size, state.settings.device
    side = state.settings.image_size
    pictures = np.random.default_rng(0).integers(256, size=(rows, 3, *side), dtype=np.uint8)
    labels, ones, numbers = np.arange(rows) % 10, np.ones(rows), np.arange(rows)

    def sums(n: int, within: LinearizedModel = model, *, hold: bool = False) -> Sums:
        given = pictures[:n], labels[:n], ones[:n], numbers[:n]
        return sum_rows(within, *given, state.environment["threads"], Ranks(), hold=hold)

    def forget(learned: State) -> State:
        proven, probe = learned.proven(forgotten)
        learned.drift(probe)
        return learned.subtract(sums(forgotten, proven, hold=forgotten <= learned.most_held))

    batch = model.synthetic(size)

    @torch.no_grad()
    def backbone() -> None:
        """Make the backbone's forward passes, and backward ones where there are tangents."""
        for _ in range(rows // size):
            if model.ladder is not None:
                model.backbone.net(batch)
            else:
                model.tangent.jacobian(batch, model.directions, lambda some: some[:, :1])

    sums(min(rows, 2 * size))  # starts the device's libraries
    with passing(model.device) as call:
        call(backbone)
        computing, _ = timed(device, lambda: call(backbone))
    fitting, learned = timed(device, lambda: state.learn(sums(rows)))
    deleting, _ = timed(device, lambda: forget(learned))
    predicting, _ = timed(device, lambda: model.scores(learned.parameters, pictures))
    speeds = [(rows, computing), (rows, fitting), (forgotten, deleting), (rows, predicting)]
    return [*(f"{n / seconds:,.0f}" for n, seconds in speeds), f"{computing / fitting:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", help="by default the accelerator that is here")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--forgotten", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], choices=[*NETWORKS])
    args = parser.parse_args()
    if args.device is None and not torch.accelerator.is_available():
        sys.exit("No accelerator is here, so that there is nothing to measure (--device cpu tries it).")
    device = args.device or torch.accelerator.current_accelerator().type
    lines = []
    for name in args.networks:
        for kind in KINDS:
            settings = {"pixels": args.pixels, "batch_size": args.batch_size, "device": device}
            state = load(name, kind, **settings)
            lines.append([name, kind, *measure(state, args.rows, args.forgotten)])
            print(lines[-1], file=sys.stderr, flush=True)
    header = ["backbone", "trained", "backbone alone", "fit", "deletion", "prediction", "its share"]
    what = torch.cuda.get_device_name() if device.startswith("cuda") else device
    text = table(header, lines) + (
        f"\n\nImages a second on {what}, {args.pixels} px, in float32 and batches of {args.batch_size}: "
        f"{args.rows:,} learned and predicted, {args.forgotten:,} forgotten. A fit holds sums and "
        "solve, a deletion its probe too. The backbone alone makes the same passes over one batch that "
        "stays on the device; its share is of the time of a fit."
    )
    if device == "cpu":
        print(text)
    else:
        publish("accelerator", text)


if __name__ == "__main__":
    main()
