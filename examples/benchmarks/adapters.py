"""How large an adapter and its private state are, and what it takes to save, push and pull them.

The Hub is the tests' server on loopback, driven by the real client: the seconds are those of everything
but the network.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
import pytest
from _common import fashion_mnist, interleaved, publish, table
from hub_server import Hub, connected_hub

from fastntk_sk import FastNTKClassifier

CASES = {
    "lite0, ladder, 64 px": {"backbone": "tf_efficientnet_lite0", "image_size": 64},
    "lite0, norm, 64 px": {
        "backbone": "tf_efficientnet_lite0",
        "trainable": "norm",
        "image_size": 64,
    },
    "ViT-B/32, ladder": {"backbone": "vit_base_patch32_224", "pretrained": False},
    "ViT-B/32, 10 prompts": {
        "backbone": "vit_base_patch32_224",
        "trainable": "prompt",
        "pretrained": False,
    },
}
TOKEN = "hf_test"
N_ROWS, REPEATS = 64, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=[*CASES])
    parser.add_argument("--components", type=int, default=None, help="the default where not given")
    args = parser.parse_args()
    given = {} if args.components is None else {"n_components": args.components}
    X, y, *_ = fashion_mnist()
    X, y = X[:N_ROWS], y[:N_ROWS]
    lines = []
    for name in args.cases:
        clf = FastNTKClassifier(**CASES[name], **given, random_state=0).fit(X, y)
        with (
            pytest.MonkeyPatch.context() as patch,
            tempfile.TemporaryDirectory() as home,
            connected_hub(patch, Path(home)) as hub,
        ):
            lines.append([name, *measure(clf, X, hub)])
    head = ["adapter", "backbone", "trained", "adapter.safetensors", "config + card", "private state"]
    head += ["save_pretrained", "push", "pull (cold cache)", "save", "save, encrypted", "load"]
    width = "Default" if args.components is None else f"{args.components:,}"
    text = table(head, lines)
    publish(
        "adapters",
        f"{text}\n\n{width} `n_components`, {N_ROWS} rows learned, median of {REPEATS} runs. A pull and "
        "a load build the backbone too. Trained are the readout and, of a subset, the displaced "
        "parameters. The private state of a ladder is sums of size k² and k·C, that of a subset k², "
        "k·d·C and d², however many rows were learned.",
    )


def measure(clf: FastNTKClassifier, X: np.ndarray, hub: Hub) -> list[str]:
    """Return the cells of one estimator: sizes, then seconds."""
    key, numbers = secrets.token_bytes(32), itertools.count()
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)

        def push() -> None:
            hub.objects.clear()  # or the client would find that there is nothing to upload
            clf.push_to_hub(f"me/adapter-{next(numbers)}", token=TOKEN)

        def pull() -> FastNTKClassifier:
            with tempfile.TemporaryDirectory() as cache:
                last = next(reversed(hub.repos))
                return FastNTKClassifier.from_pretrained(last, token=TOKEN, cache_dir=cache)

        seconds = interleaved(
            {
                "save_pretrained": lambda: clf.save_pretrained(folder / "adapter"),
                "push": push,
                "pull": pull,
                "save": lambda: clf.save(folder / "state"),
                "encrypted": lambda: clf.save(folder / "encrypted", key=key),
                "load": lambda: FastNTKClassifier.load(folder / "state"),
            },
            REPEATS,
        )
        assert np.array_equal(pull().decision_function(X[:8]), clf.decision_function(X[:8]))
        sizes = {file.name: file.stat().st_size for file in (folder / "adapter").iterdir()}
        private = (folder / "state").stat().st_size - sizes["adapter.safetensors"]
    model = clf._adapter.model
    weights = sum(p.numel() * p.element_size() for p in model.backbone.net.parameters())
    tensors = sizes.pop("adapter.safetensors")
    return [
        _mib(weights),
        f"{clf.readout_.size + clf.displacement_.size:,}",
        _mib(tensors),
        f"{sum(sizes.values()) / 1024:.0f} KiB",
        _mib(private),
        *(f"{value:.2f} s" for value in seconds.values()),
    ]


def _mib(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.2f} MiB"


if __name__ == "__main__":
    main()
