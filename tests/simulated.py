"""A device that is none: tensors whose values lie on the CPU, but which do as if they did not.

What torch calls the "lazy" device has no kernels in torch's own builds, and autograd runs its backward
passes in the calling thread, so that everything an accelerator would be asked for arrives here.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("lazy:0")
# what waits for a device: a number, or a shape that depends on values
_WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
    "repeat_interleave.Tensor",
)


class Held(torch.Tensor):
    """A tensor of the simulated device, around one of the CPU."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Held({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {}, None)


def run(func, args, kwargs, log):
    """Run an operation on the values, and return what it gives where it would be."""
    name = func.__name__
    flat, _ = tree_flatten((args, kwargs))
    tensors = [each for each in flat if isinstance(each, torch.Tensor)]
    held = [each for each in tensors if isinstance(each, Held)]
    target = kwargs.get("device")
    kwargs = dict(kwargs)
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    there = bool(held) if target is None else torch.device(target).type == DEVICE.type
    moves = len(held) < len(tensors) and bool(held)
    if func is torch.ops.aten._to_copy.default or name.startswith("copy_"):
        moved = there != bool(held) if not name.startswith("copy_") else moves
        there = bool(held) if name.startswith("copy_") else there
        if moved and log is not None:
            log.append(("in" if there else "out", tuple(tensors[-1].shape), tensors[-1].dtype))
    elif moves and any(not isinstance(each, Held) and each.ndim for each in tensors):
        shapes = [(type(each).__name__, tuple(each.shape)) for each in tensors]
        raise RuntimeError(f"{name} got tensors of two devices: {shapes}")
    if held and log is not None and name.startswith(_WAITS):
        log.append(("wait", name, None))
    if func is torch.ops.aten._efficientzerotensor.default:
        func = torch.ops.aten.zeros.default  # the other one has no values
    inner_args, inner_kwargs = tree_map_only(Held, lambda t: t.inner, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if not there:
        return out
    own = {id(each.inner): each for each in held}  # what is changed in place stays what it is

    def wrap(t):
        return own.get(id(t)) if id(t) in own else Held(t)

    return tree_map_only(torch.Tensor, wrap, out)


class Simulated(TorchDispatchMode):
    """Let the device be there; `log` notes what travels ("in", "out") and what waits for it ("wait").

    Where it `rounds_up`, its convolutions end in other last bits than the CPU's.
    """

    def __init__(self, rounds_up=False):
        super().__init__()
        self.log, self.rounds_up = [], rounds_up

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = run(func, args, kwargs or {}, self.log)
        if self.rounds_up and func is torch.ops.aten.convolution.default and isinstance(out, Held):
            return Held(out.inner.nextafter(torch.tensor(torch.inf)))
        return out
