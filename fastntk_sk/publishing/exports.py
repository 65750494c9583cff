"""What predicts as a plain module, as a model of timm, as an adapter of peft, and as an ONNX file."""

from __future__ import annotations

import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..backbones.inputs import InputSpec
from ..backbones.modules import exchange
from ..backbones.outputs import Features
from ..backbones.transformers_models import TransformersModel
from ..tangents.lora import ADAPTER, LORA_A, LORA_B, lora_config


def with_readout(net: nn.Module, W: Tensor, head: str | None = None) -> nn.Module:
    """Put a readout of shape (C, d + 1), bias last, on top of a network of features.

    The network is changed: it becomes its submodule `head`, or a timm model's own classifier, unless its
    features are pooled here. Others, without `head`, become a Sequential of "backbone" and "readout".
    """
    readout = skip_init(nn.Linear, W.shape[1] - 1, len(W), dtype=W.dtype, device=W.device)
    readout.load_state_dict({"weight": W[:, :-1], "bias": W[:, -1]})
    if head is not None:
        exchange(net, net.get_submodule(head), readout)
        return net.eval()
    pooled = any(isinstance(hook, Features) for hook in net._forward_hooks.values())
    reset = None if pooled else getattr(net, "reset_classifier", None)
    if reset is not None:
        with torch.random.fork_rng(devices=[]):
            reset(len(W))
        head = net.get_classifier()  # type: ignore[operator]
        if isinstance(head, nn.Linear) and head.weight.shape == readout.weight.shape:
            name = next(name for name, module in net.named_modules() if module is head)
            net.set_submodule(name, readout)
            return net.eval()
        reset(0)
    return nn.Sequential(OrderedDict(backbone=net, readout=readout)).eval()


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Make a folder, and give a place whose files are moved to it when all of them are written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        yield Path(written)
        for file in Path(written).iterdir():
            os.replace(file, folder / file.name)


def save_for_timm(module: nn.Module, spec: InputSpec, folder: Path, labels: list[str]) -> None:
    """Write a timm model of `with_readout`, whose outputs have these labels, as timm loads it.

    Raise ValueError if it is no plain timm model.
    """
    from timm.models import save_for_hf

    config = getattr(module, "pretrained_cfg", None)
    prompted = any(name.endswith(".prompt") for name in module.state_dict())
    if config is None or prompted or not hasattr(module, "default_cfg"):
        what = "one with prompt tokens" if prompted else type(module).__name__
        raise ValueError(
            f"Expected a plain timm model, got {what}, which timm cannot build by itself. Use "
            "to_module() and torch, or publish the adapter."
        )
    if (folder / "adapter.safetensors").exists():
        raise ValueError(
            f"Expected another folder than {str(folder)!r}, which holds an adapter whose config.json "
            "would be overwritten."
        )
    assert spec.size is not None
    module.pretrained_cfg = {  # type: ignore[assignment]
        **config,
        "input_size": (spec.channels, *spec.size),
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": spec.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "num_classes": len(labels),
    }
    module.to(memory_format=torch.contiguous_format)
    sized = {"img_size": spec.size} if config.get("fixed_input_size") else {}
    with _replacing(folder) as written:
        save_for_hf(
            module,
            str(written),
            {"label_names": labels},
            model_args=sized,
            safe_serialization=True,
        )


def save_for_peft(module: nn.Module, rank: int, base_model: str | None, folder: Path) -> None:
    """Write the LoRA layers of a module of `with_readout` as peft loads them.

    The classifier of a model of timm or transformers is written with them; a readout on another network
    is left out.
    """
    kept: list[str] = []
    if hasattr(module, "get_classifier"):
        classifier = module.get_classifier()  # type: ignore[operator]
        kept = [name for name, each in module.named_modules() if each is classifier]
    else:
        readout, module = module.get_submodule("readout"), module.get_submodule("backbone")
        if isinstance(module, TransformersModel):
            module = module.model
            empty = (name for name, each in module.named_modules() if isinstance(each, nn.Identity))
            kept = [name for name in empty if name.split(".")[0] == "classifier"]
            for name in kept:
                module.set_submodule(name, readout)
    state = module.state_dict()
    layers = [name.removesuffix(LORA_A) for name in state if name.endswith(LORA_A)]
    names = [name for name in state if name.endswith((LORA_A, LORA_B))]
    names += [f"{name}.{tensor}" for name in kept for tensor in module.get_submodule(name).state_dict()]
    tensors = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": state[name].cpu().contiguous()
        for name in names
    }
    others = {"base_model_name_or_path": base_model, "inference_mode": True}
    config = lora_config(layers, rank, modules_to_save=kept or None, **others)
    config.target_modules = layers  # in their order, which peft's own set has not
    with _replacing(folder) as written:
        config.save_pretrained(str(written))
        save_file(tensors, written / "adapter_model.safetensors", {"format": "pt"})


def save_onnx(
    module: nn.Module, example: Tensor, spec: InputSpec, labels: list[str], path: Path
) -> None:
    """Export a module in eval mode to an ONNX file, for batches of any number of rows.

    The input is "batch", as in the example of two rows, and the output "scores"; the metadata hold
    "classes" (the labels) and "preprocessing" (the fields of `spec`) in JSON.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX needs more packages: pip install 'fastntk_sk[onnx]'.") from error
    program = torch.onnx.export(
        module,
        (example,),
        input_names=["batch"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("n_rows")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["classes"] = json.dumps(labels)
    program.model.metadata_props["preprocessing"] = json.dumps(asdict(spec))
    with _replacing(path.parent) as written:
        program.save(written / path.name)
