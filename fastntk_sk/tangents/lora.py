"""Low-rank adaptation (LoRA, arXiv:2106.09685) of a frozen network, by the layers of peft."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import SubsetError

ADAPTER = "fastntk"  # no name that a network's own layers of peft have
LORA_A, LORA_B = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"
ALPHA = 8  # peft's default: a layer adds (ALPHA / rank) B A x
_PROJECTIONS = {
    *("qkv", "qk", "kv", "q", "k", "v", "query", "key", "value", "q_proj", "k_proj", "v_proj"),
    *("qkv_proj", "proj", "o_proj", "out_proj", "dense"),
}


def takes_lora(net: nn.Module) -> bool:
    """Return whether a network holds attention projections or pointwise convolutions."""
    return any(_is_projection(net, name) or _is_pointwise(net, name) for name, _ in net.named_modules())


@torch.no_grad()
def lora_layers(net: nn.Module, probe: Tensor) -> list[str]:
    """Return the names of the attention projections and pointwise convolutions of a network.

    A layer counts if a pass over `probe` calls it, and if its weight has no other name. Where there are
    none, linear layers on maps of shape (n, height, width, channels) count, which are the pointwise
    convolutions of a ConvNeXt.
    """
    modules = net.named_modules(remove_duplicate=False)
    owners = Counter(id(p) for _, module in modules for p in module._parameters.values())
    called: dict[nn.Module, int] = {}

    def note(module: nn.Module, given: tuple[Any, ...], _: Any) -> None:
        if given and owners[id(module.weight)] == 1:
            called[module] = given[0].ndim

    layers = [m for m in net.modules() if type(m) in (nn.Linear, nn.Conv2d)]
    hooks = [module.register_forward_hook(note) for module in layers]
    try:
        net(probe)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, module in net.named_modules() if module in called]
    found = [name for name in names if _is_projection(net, name) or _is_pointwise(net, name)]
    return found or [
        name
        for name in names
        if called[net.get_submodule(name)] == 4 and type(net.get_submodule(name)) is nn.Linear
    ]


def _is_projection(net: nn.Module, name: str) -> bool:
    """Return whether a module is a linear layer that is named as the projections of attention are."""
    *parts, last = name.split(".")
    if last not in _PROJECTIONS or type(net.get_submodule(name)) is not nn.Linear:
        return False
    around = [type(net.get_submodule(".".join(parts[:i]))).__name__ for i in range(1, len(parts) + 1)]
    return any("att" in word.lower() for word in (*parts, *around))


def _is_pointwise(net: nn.Module, name: str) -> bool:
    module = net.get_submodule(name)
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and (module.groups, module.padding_mode) == (1, "zeros")
    )


def lora_config(layers: Sequence[str], rank: int, **others: Any) -> Any:
    """Return peft's configuration of LoRA on some layers; raise ImportError without peft."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'fastntk_sk[lora]'.") from error
    return LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=list(layers), **others)


def insert_lora(net: nn.Module, layers: Sequence[str], rank: int, generator: torch.Generator) -> None:
    r"""Replace layers of a network by those of peft, in place, which add (ALPHA / rank) B A x.

    A of shape (rank, in) is drawn uniformly from :math:`\pm 1 / \sqrt{in}`, as in peft; B of shape
    (out, rank) is zero, so that the network gives what it gave. Raise SubsetError if it has adapters of
    peft already, which would be switched off.
    """
    config = lora_config([f"net.{name}" for name in layers], rank)
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in net.modules()):
        raise SubsetError(
            'Expected a network without adapters for trainable="lora", got one with layers of peft. '
            "Merge them into its weights first: merge_and_unload() of peft."
        )
    if not layers:
        return
    # within a plain module: of one with a `config` peft believes that it is a model of transformers
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, nn.ModuleDict({"net": net}), ADAPTER)
    for name in layers:
        A = net.get_parameter(name + LORA_A)
        draw = torch.rand(A.shape, generator=generator, dtype=torch.float64)
        A.data.copy_((2 * draw - 1) / math.sqrt(A[0].numel()))
    net.requires_grad_(False).eval()


def merge_lora(net: nn.Module) -> None:
    """Add the products of LoRA layers to the weights, and make the layers plain again, in place."""
    for name, layer in list(net.named_modules()):
        if ADAPTER in getattr(layer, "lora_A", ()):
            layer.merge()
            net.set_submodule(name, layer.get_base_layer())
