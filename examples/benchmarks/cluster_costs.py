"""What ImageNet-1k and a billion images cost on clusters: arithmetic, not a measurement.

Counted: operations of a forward pass, bytes of the statistics and of what travels. Measured: what a row
takes in rank 0's ledger, here, and passes per row, by pass_cost.py, both on a CPU. Assumed, and said so
on the page: what a GPU sustains, how fast a machine reads pictures, network and solve.
"""

from __future__ import annotations

import csv
import secrets
import time
import tracemalloc
from pathlib import Path

import torch
from _common import put, stamp, table
from torch.utils.flop_counter import FlopCounterMode

from fastntk_sk.backbones.loading import load_backbone
from fastntk_sk.store.ledger import KEY_BYTES, Ledger
from fastntk_sk.sums.memory import block_sizes
from fastntk_sk.sums.statistics import Statistics

PAGE = Path(__file__).parents[2] / "docs" / "user_guide" / "scaling.md"
GPU_FLOPS = (
    60e12  # sustained by one GPU in bfloat16 or TF32: a fifth of an A100's peak; no GPU was there
)
DECODED = 2000  # pictures a second that the processors beside one GPU read and resize
NETWORK = 25e9  # bytes a second between machines
SOLVER_FLOPS = 1e12  # float64, of one rank's processors
MEASURED = Path(__file__).with_name("pass_cost-3.csv")
COLUMNS = "ladder", "norm, pseudo kernel, r = 3", "norm, full kernel, 10 classes"
SENT_BYTES = 4 * 8 + KEY_BYTES + 8  # of a row: place, label, weight, segment; then digest and energy
ENTERED = 100_000  # rows whose entry into a ledger is measured
ROWS = {"ImageNet-1k, 1.28 million": 1_281_167, "a billion": 10**9}
NETWORKS = {"tf_efficientnet_lite0": 1280, "vit_base_patch32_224": 768}
CLASSES, K = 1000, 4096


def passes_per_row() -> dict[str, float]:
    """Return how many forward passes of a row its learning costs, at 224 px, as pass_cost.py measured.

    Of one and two threads, the larger one. What the full kernel adds is proportional to the classes.
    """
    with MEASURED.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["pixels"] == "224"]
    ladder, pseudo, full = (max(float(line[column]) for line in lines) for column in COLUMNS)
    return {
        "ladder": ladder,
        "pseudo, 3 directions": pseudo,
        f"full, {CLASSES:,} classes": ladder + (full - ladder) * CLASSES / 10,
    }


def forward_flops(name: str) -> int:
    with torch.device("meta"):
        backbone = load_backbone(name, pretrained=False)
        picture = torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        backbone.net(picture)
    return counted.get_total_flops()


def ledger_costs() -> tuple[float, int]:
    """Measure the seconds and bytes of memory that a row without an id takes in a ledger."""
    rows = [0] * ENTERED, [1.0] * ENTERED
    digests, seconds = [secrets.token_bytes(KEY_BYTES) for _ in range(ENTERED)], []
    for _ in range(5):
        started = time.perf_counter()
        Ledger().added(digests, *rows)
        seconds.append(time.perf_counter() - started)
    tracemalloc.start()
    held = Ledger().added((bytes(bytearray(digest)) for digest in digests), *rows)
    n_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return min(seconds) / held.n_rows, n_bytes // held.n_rows


def readable(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def main() -> None:
    lines, passes_of = [], passes_per_row()
    entry_seconds, entry_bytes = ledger_costs()
    for name, d in NETWORKS.items():
        flops = forward_flops(name)
        for kernel, passes in passes_of.items():
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
            for rows, n in ROWS.items():
                serial = (sums + n * SENT_BYTES) / NETWORK + n * entry_seconds + solve / SOLVER_FLOPS
                alone = max(n * flops * passes / GPU_FLOPS, n / DECODED)
                lines.append(
                    [
                        name,
                        kernel,
                        rows,
                        *(readable(alone / gpus + serial) for gpus in (8, 64, 512)),
                        f"{sums / 1e9:,.1f} GB",
                        readable(serial),
                        f"{n * entry_bytes / 1e9:,.1f} GB",
                    ]
                )
    header = [
        "backbone",
        "trained",
        "rows",
        "8 GPUs",
        "64",
        "512",
        "sums of a rank",
        "serial part",
        "ledger of rank 0",
    ]
    counted = ", ".join(f"{name} {forward_flops(name) / 1e9:.2f}" for name in NETWORKS)
    per_row = ", ".join(f"{count:,.4g} ({of})" for of, count in passes_of.items())
    text = table(header, lines) + (
        "\n\nNo GPU and no second machine were at hand. Assumed, by nobody measured: "
        f"{GPU_FLOPS / 1e12:.0f} TFLOP/s sustained by a GPU, {DECODED:,} pictures a second read beside "
        f"each, {NETWORK / 1e9:.0f} GB/s between machines, {SOLVER_FLOPS / 1e12:.0f} TFLOP/s for the "
        f"solve. Measured on a CPU: forward passes a row, {per_row}, the last one extrapolated from 10 "
        f"classes; {1e6 * entry_seconds:.0f} microseconds and {entry_bytes} bytes of memory a row in "
        f"the ledger. Counted: {counted} GFLOP a forward pass at 224 px, the bytes of the "
        f"sums, and {SENT_BYTES} bytes a row to and from rank 0."
    )
    print(text)
    put(PAGE, "cluster_costs", f"{text}\n\n{stamp('benchmarks/cluster_costs.py')}")


if __name__ == "__main__":
    main()
