"""A network of its own from a module of the user's: copied, unwrapped, and checked."""

from __future__ import annotations

import copy
import itertools
import sys

import torch
from torch import Tensor, nn

from ..exceptions import BackboneError

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def own_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module without what compiles it or runs it in parallel, in it as well.

    Parameters are called as in the module that was wrapped. Raise BackboneError for what has no
    gradients of its own (scripted, quantised, sharded or uninitialised modules), or cannot be copied.
    """
    module = _unwrapped(module)
    _check(module)
    try:
        net = copy.deepcopy(module)
        for path, part in list(net.named_modules()):
            if part is not _unwrapped(part):
                net.set_submodule(path, _unwrapped(part))
            part._compiled_call_impl = None  # of `module.compile()`
        return net.eval()
    except Exception as error:  # modules raise anything where they cannot be copied
        raise BackboneError(
            f"Expected a module that can be copied and set to eval mode, got {type(module).__name__}: "
            f"{error} Pass the plain nn.Module that it was made from, and "
            "torch.nn.utils.parametrizations.weight_norm in place of torch.nn.utils.weight_norm."
        ) from error


def check_finite(net: nn.Module, name: str) -> None:
    """Raise BackboneError if weights or running statistics are NaN or infinite."""
    statistics = (
        each for each in net.named_buffers() if each[0].endswith(("running_mean", "running_var"))
    )
    wrong = [
        path
        for path, tensor in itertools.chain(net.named_parameters(), statistics)
        if not tensor.isfinite().all()
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise BackboneError(
            f"Expected finite weights in backbone {name!r}, got NaN or infinity in "
            f"{', '.join(wrong[:3])}{more}. Load them again: the checkpoint is damaged, its training "
            "diverged, or half precision overflowed."
        )


def exchange(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another one in a network, under each of its names."""
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if module is old:
            net.set_submodule(name, new)


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside of a compiled or parallel one."""
    dynamo = sys.modules.get("torch._dynamo")  # nothing is compiled without it
    compiled = getattr(dynamo, "OptimizedModule", ())
    while True:
        if isinstance(module, compiled):
            module = module._orig_mod
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def _check(module: nn.Module) -> None:
    """Raise BackboneError for modules and tensors without gradients of their own."""
    for part in module.modules():
        kind = type(part)
        if isinstance(part, torch.jit.ScriptModule):
            problem = "a scripted or traced module"
        elif kind.__module__.startswith(_QUANTISED):
            problem = f"a quantised {kind.__name__}"
        elif kind.__name__ == "FullyShardedDataParallel":
            problem = "a sharded module"
        else:
            continue
        raise BackboneError(
            f"Expected an nn.Module with accessible submodules, got {problem}. Pass the nn.Module that "
            "it was made from."
        )
    for path, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            problem, advice = "is not initialised yet", "Call the module on a batch first."
        elif tensor.is_meta:
            problem, advice = "is on the meta device, without values", "Load the weights first."
        elif not _is_plain(tensor):
            problem = f"is a {type(tensor).__name__} of {tensor.dtype}, {tensor.layout}"
            advice = "Convert it to a dense tensor of real floating-point numbers on one device."
        else:
            continue
        raise BackboneError(f"Expected plain weights in the backbone, but {path} {problem}. {advice}")


def _is_plain(tensor: Tensor) -> bool:
    kinds = (Tensor, nn.Parameter)
    real = tensor.is_floating_point() or (
        not isinstance(tensor, nn.Parameter) and not tensor.is_complex()
    )
    return type(tensor) in kinds and tensor.layout == torch.strided and not tensor.is_quantized and real
