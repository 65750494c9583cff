"""What ImageNet-1k and a billion images cost on clusters: arithmetic, not a measurement.

Counted: operations of a forward pass, bytes of the statistics. Measured elsewhere: passes per row.
Assumed, and written into the page: what a GPU sustains, and how fast a machine reads pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch
from _common import put, stamp, table
from torch.utils.flop_counter import FlopCounterMode

from fastntk_sk.backbones.loading import load_backbone
from fastntk_sk.sums.memory import block_sizes
from fastntk_sk.sums.statistics import Statistics

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "scaling.md"
GPU_FLOPS = 60e12  # sustained by one GPU in bfloat16 or TF32: a fifth of an A100's peak
DECODED = 2000  # pictures a second that the processors beside one GPU read and resize
NETWORK = 25e9  # bytes a second between machines
SOLVER_FLOPS = 1e12  # float64, of one rank's processors
PASSES = {
    "ladder": 1.25,
    "pseudo, 3 directions": 5.0,
    "full, 1,000 classes": 1050.0,
}  # forward ones a row
LEDGER_BYTES = 2 * 32 + 16  # two digests, label, weight
ROWS = {"ImageNet-1k, 1.28 million": 1_281_167, "a billion": 10**9}
NETWORKS = {"tf_efficientnet_lite0": 1280, "vit_base_patch32_224": 768}
CLASSES, K = 1000, 4096


def forward_flops(name: str) -> int:
    with torch.device("meta"):
        backbone = load_backbone(name, pretrained=False)
        picture = torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        backbone.net(picture)
    return counted.get_total_flops()


def readable(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def main() -> None:
    lines = []
    for name, d in NETWORKS.items():
        flops = forward_flops(name)
        for kernel, passes in PASSES.items():
            if kernel == "ladder":
                width, components = block_sizes("full", K, 0, 0)
            elif "pseudo" in kernel:
                width, components = block_sizes("pseudo", d, K // 3, 3)
            else:
                width, components = block_sizes("full", d, K, CLASSES)
            sums = Statistics.n_bytes(width, components, CLASSES)
            unknowns = components or width + 1
            solve = unknowns**3 / 3
            if kernel == "ladder":  # a tridiagonal form serves all values of alpha
                solve = 4 * solve + 4 * CLASSES * width**2
            if components:
                solve += CLASSES * ((d + 1) ** 2 * components + (d + 1) * components**2)
            serial = 2 * sums / NETWORK + solve / SOLVER_FLOPS
            for rows, n in ROWS.items():
                alone = max(n * flops * passes / GPU_FLOPS, n / DECODED)
                lines.append(
                    [
                        name,
                        kernel,
                        rows,
                        *(readable(alone / gpus + serial) for gpus in (8, 64, 512)),
                        f"{2 * sums / 1e9:,.1f} GB",
                        readable(serial),
                        f"{n * LEDGER_BYTES / 1e9:,.1f} GB",
                    ]
                )
    header = [
        "backbone",
        "trained",
        "rows",
        "8 GPUs",
        "64",
        "512",
        "moved a rank",
        "serial part",
        "ledger",
    ]
    counted = ", ".join(f"{name} {forward_flops(name) / 1e9:.2f}" for name in NETWORKS)
    per_row = ", ".join(f"{count:g} forward passes a row ({of})" for of, count in PASSES.items())
    text = table(header, lines) + (
        f"\n\nAssumed: {GPU_FLOPS / 1e12:.0f} TFLOP/s sustained by a GPU, {DECODED:,} pictures a second "
        f"read beside each, {NETWORK / 1e9:.0f} GB/s between machines, {SOLVER_FLOPS / 1e12:.0f} "
        f"TFLOP/s for the solve, {per_row}. Counted: {counted} "
        "GFLOP a forward pass at 224 px, and the bytes of the sums."
    )
    print(text)
    put(PAGE, "cluster_costs", f"{text}\n\n{stamp('benchmarks/cluster_costs.py')}")


if __name__ == "__main__":
    main()
