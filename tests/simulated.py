"""A device that is none: tensors whose values lie on the CPU, but which do as if they did not.

What torch calls the "lazy" device has no kernels in torch's own builds, and autograd runs its backward
passes in the calling thread, so that everything an accelerator would be asked for arrives here.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
DEVICE = torch.device("lazy:0")
# they give numbers, or shapes that depend on values: a device is waited for
_WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "repeat_interleave")


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
        raise RuntimeError(f"{func} of a tensor whose device is gone")


class Simulated(TorchDispatchMode):
    """Let the device be there; `log` notes what travels ("in", "out") and what waits for it ("wait").

    Where it `rounds_up`, its convolutions end in other last bits than the CPU's.
    """

    def __init__(self, rounds_up=False):
        super().__init__()
        self.log, self.rounds_up = [], rounds_up

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        held = [each for each in tensors if isinstance(each, Held)]
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == DEVICE.type
            kwargs["device"] = torch.device("cpu")
        else:
            there = isinstance(args[0], Held) if func is aten.copy_.default else bool(held)
        if func in (aten._to_copy.default, aten.copy_.default):
            source = tensors[-1]
            if there is not isinstance(source, Held):
                self.log.append(("in" if there else "out", tuple(source.shape), source.dtype))
        elif held and any(each.ndim for each in tensors if not isinstance(each, Held)):
            shapes = [(type(each).__name__, tuple(each.shape)) for each in tensors]
            raise RuntimeError(f"{func} got tensors of two devices: {shapes}")
        elif held and func.__name__.startswith(_WAITS):
            self.log.append(("wait", func.__name__, None))
        if func is aten._efficientzerotensor.default:  # has no values
            func = aten.zeros.default
        args, kwargs = tree_map_only(Held, lambda each: each.inner, (args, kwargs))
        found = func(*args, **kwargs)
        if not there:
            return found
        if self.rounds_up and func is aten.convolution.default:
            found = found.nextafter(torch.tensor(torch.inf))
        changed = {id(each.inner): each for each in held}  # in place
        return tree_map_only(
            torch.Tensor, lambda each: changed[id(each)] if id(each) in changed else Held(each), found
        )
