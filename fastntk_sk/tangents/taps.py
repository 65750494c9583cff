"""Modules that hand out per-sample parameter gradients during an ordinary backward pass.

A per-sample gradient needs only a module's input and the gradient of its output. A tap stands in
for a module with trainable parameters: a custom autograd function runs the module forward, and its
backward returns, besides the gradient of the input, the gradient of every row's own copy of the
parameters (views expanded over the batch, which take no memory). Nothing runs once per image.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.overrides import TorchFunctionMode

from ..exceptions import JacobianError

# What one pass hands to its taps: a network is shared by threads, a context is not.
_Handed = Mapping["Tap", Mapping[str, Tensor]]
LEAVES: ContextVar[_Handed] = ContextVar("LEAVES", default=MappingProxyType({}))
TANGENTS: ContextVar[_Handed] = ContextVar("TANGENTS", default=MappingProxyType({}))


@contextmanager
def handed(variable: ContextVar[_Handed], tensors: _Handed) -> Iterator[None]:
    """Hand tensors to taps for one forward pass.

    With LEAVES, of shape (n, *shape), the pass records what their gradients need. With TANGENTS, of the
    parameters' shapes, it carries the derivative along them; it must run in `fwd.dual_level`.
    """
    token = variable.set(tensors)
    try:
        yield
    finally:
        variable.reset(token)


class PlainAttention(TorchFunctionMode):
    """Attention in terms of matrix products, which have forward-mode derivatives and batching rules.

    In this thread only; `torch.nn.attention.sdpa_kernel` would change the kernels of every thread. Any
    such mode also keeps torch's transformer layers off their fused path, which has no derivatives.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
        if func is nn.functional.multi_head_attention_forward:  # calls the other one out of our sight
            wanted = kwargs.get("need_weights", True)
            kwargs["need_weights"] = True
            out, weights = func(*args, **kwargs)
            return out, weights if wanted else None
        return func(*args, **kwargs)


def shared_copy(net: nn.Module, but: Sequence[str] = ()) -> nn.Module:
    """Return a copy whose parameters and buffers are the network's own, `but` for some names."""
    named = itertools.chain(net.named_parameters(), net.named_buffers())
    return copy.deepcopy(net, memo={id(tensor): tensor for name, tensor in named if name not in but})


class Tap(nn.Module):
    """A frozen module with trainable parameters; this base class fits every module, by vmap of its vjp.

    `names` are those of the parameters within the module.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module; see `handed`."""
        leaves, tangents = LEAVES.get().get(self), TANGENTS.get().get(self)
        if leaves is not None:
            return _PerSample.apply(x, self, args, kwargs, *(leaves[name] for name in self.names))
        if tangents is not None:
            return self.push(tangents, x, *args, **kwargs)
        return self.plain(x, *args, **kwargs)

    def plain(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module."""
        return self.module(x, *args, **kwargs)

    def push(self, tangents: Mapping[str, Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Forward-mode rule."""
        duals = {
            name: fwd.make_dual(self.module.get_parameter(name).detach(), tangent)
            for name, tangent in tangents.items()
        }
        # of a copy: a call swaps the module's tensors, which other threads may be reading
        return functional_call(shared_copy(self.module), duals, (x, *args), kwargs)

    def record(self, ctx: Any, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Run forward and keep on `ctx` what `pull` needs."""
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            out = self.module(inner, *args, **kwargs)
        ctx.kept = (inner, out, args, kwargs)
        return out.detach().clone()

    def pull(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradient of the input and, for each name, of every row's parameter copy."""
        inner, out, args, kwargs = ctx.kept
        below = None
        if ctx.needs_input_grad[0]:
            (below,) = torch.autograd.grad(out, inner, grad, retain_graph=True)
        rows = ctx.n_rows
        if len(inner) % rows or len(grad) % rows:
            raise JacobianError(
                f"{type(self.module).__name__} maps {len(inner)} to {len(grad)} rows in a batch of "
                f"{rows}: its parameters {self.names} have no per-sample gradient by themselves."
            )
        parameters = {name: self.module.get_parameter(name).detach() for name in self.names}
        module = shared_copy(self.module)

        def pull_one(x_one: Tensor, grad_one: Tensor) -> dict[str, Tensor]:
            call = lambda p: functional_call(module, p, (x_one, *args), kwargs)  # noqa: E731
            return vjp(call, parameters)[1](grad_one)[0]

        with PlainAttention():
            pulled = vmap(pull_one)(
                inner.detach().unflatten(0, (rows, -1)), grad.unflatten(0, (rows, -1))
            )
        return below, [pulled[name] for name in self.names]


class _PerSample(torch.autograd.Function):
    """Glue between autograd and a tap: forward records, backward pulls."""

    @staticmethod
    def forward(ctx, x, tap, args, kwargs, *leaves):
        ctx.tap = tap
        ctx.n_rows = len(leaves[0])
        return tap.record(ctx, x, args, kwargs)

    @staticmethod
    def backward(ctx, grad):
        below, pulled = ctx.tap.pull(ctx, grad)
        return below, None, None, None, *pulled


class BatchNormTap(Tap):
    r"""Batch norm with frozen running statistics: an affine map of each channel.

    With r = 1 / sqrt(running_var + eps) and m = running_mean, :math:`y = \gamma r (x - m) + \beta`,

    .. math::

        \partial_\gamma = r \Big( \sum_{hw} g x - m \sum_{hw} g \Big), \quad
        \partial_\beta = \sum_{hw} g, \quad \partial_x = \gamma r g .

    After `fold`, the scale :math:`\gamma r` lives in the convolution below, so that x arrives
    multiplied by it and one pass over the activations is saved in both directions.
    """

    def __init__(self, module: nn.modules.batchnorm._BatchNorm, names: Sequence[str]) -> None:
        super().__init__(module, names)
        mean, variance = module.running_mean, module.running_var
        assert mean is not None
        assert variance is not None
        rstd = (variance + module.eps).rsqrt()
        scale = (module.weight * rstd).detach()
        self.scale: Tensor | None = scale
        self.shift = (module.bias - mean * scale).detach()
        # normalised input = slope * x + level, in terms of the x that arrives here
        self.slope = rstd
        self.level = -mean * rstd

    def fold(self) -> Tensor:
        """Give the scale to the layer below and return it."""
        assert self.scale is not None
        scale, self.scale = self.scale, None
        self.slope = self.slope / scale
        return scale

    @property
    def foldable(self) -> bool:
        """Whether dividing by the scale is safe."""
        return self.scale is not None and bool((self.scale.abs() > 1e-12).all())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the affine map, then the activation that timm puts into the same module."""
        y = super().forward(x)
        if hasattr(self.module, "act"):
            y = self.module.act(self.module.drop(y))  # type: ignore[operator]
        return y

    def _wide(self, channel: Tensor, x: Tensor) -> Tensor:
        return channel.view(-1, *[1] * (x.ndim - 2))

    def plain(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the affine map."""
        shift = self._wide(self.shift, x)
        if self.scale is None:
            return x + shift
        return torch.addcmul(shift, x, self._wide(self.scale, x))

    def push(self, tangents: Mapping[str, Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Forward-mode rule: fewer passes over the activations than torch's own."""
        primal, tangent = fwd.unpack_dual(x)
        weight = tangents.get("weight", torch.zeros_like(self.level))
        bias = tangents.get("bias", torch.zeros_like(self.level))
        change = torch.addcmul(
            self._wide(bias + weight * self.level, x), primal, self._wide(weight * self.slope, x)
        )
        if tangent is not None:
            if self.scale is None:
                change += tangent
            else:
                change.addcmul_(tangent, self._wide(self.scale, x))
        return fwd.make_dual(self.plain(primal), change)

    def record(self, ctx: Any, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Keep the input."""
        ctx.save_for_backward(x)
        return self.plain(x)

    def pull(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Channel sums of grad and grad * x."""
        (x,) = ctx.saved_tensors
        below = None
        if ctx.needs_input_grad[0]:
            below = grad if self.scale is None else grad * self._wide(self.scale, x)

        def of_rows(y: Tensor) -> Tensor:
            y = y.sum(tuple(range(2, y.ndim))) if y.ndim > 2 else y
            return y if len(y) == ctx.n_rows else y.unflatten(0, (ctx.n_rows, -1)).sum(1)

        sums = {"bias": of_rows(grad)}
        if "weight" in self.names:
            sums["weight"] = of_rows(grad * x) * self.slope + sums["bias"] * self.level
        return below, [sums[name] for name in self.names]


class LayerNormTap(Tap):
    """Layer norm over the last axis; the normalised input is kept, not recomputed."""

    def record(self, ctx: Any, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Keep the input and its normalised form."""
        m: nn.LayerNorm = self.module  # type: ignore[assignment]
        shape = list(m.normalized_shape)
        y, mean, rstd = torch.native_layer_norm(x, shape, m.weight, m.bias, m.eps)
        ctx.save_for_backward(x, mean, rstd, (x - mean) * rstd)
        return y

    def pull(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Token sums of grad and grad times the normalised input."""
        x, mean, rstd, normalised = ctx.saved_tensors
        m: nn.LayerNorm = self.module  # type: ignore[assignment]
        below = None
        if ctx.needs_input_grad[0]:
            below, *_ = torch.ops.aten.native_layer_norm_backward(
                grad, x, list(m.normalized_shape), mean, rstd, m.weight, m.bias, [True, False, False]
            )
        rows, width = ctx.n_rows, grad.shape[-1]
        grad, normalised = grad.reshape(rows, -1, width), normalised.reshape(rows, -1, width)
        sums = {"bias": lambda: grad.sum(1), "weight": lambda: (grad * normalised).sum(1)}
        return below, [sums[name]() for name in self.names]


class LinearTap(Tap):
    """A linear layer: one batched product for the weight, token sums for the bias."""

    def record(self, ctx: Any, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Keep the input."""
        ctx.save_for_backward(x)
        return self.module(x)

    def pull(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Outer products of grad and input."""
        (x,) = ctx.saved_tensors
        below = grad @ self.module.get_parameter("weight") if ctx.needs_input_grad[0] else None
        grad = grad.reshape(ctx.n_rows, -1, grad.shape[-1])
        x = x.reshape(ctx.n_rows, -1, x.shape[-1])
        sums = {"bias": lambda: grad.sum(1), "weight": lambda: torch.bmm(grad.mT, x)}
        return below, [sums[name]() for name in self.names]


class PointwiseTap(Tap):
    """A convolution of one pixel: the linear layer of every pixel."""

    def record(self, ctx: Any, x: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """Keep the input."""
        ctx.save_for_backward(x)
        return self.module(x)

    def pull(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Outer products of grad and input."""
        (x,) = ctx.saved_tensors
        weight, below = self.module.get_parameter("weight"), None
        if ctx.needs_input_grad[0]:
            below = nn.functional.conv2d(grad, weight.transpose(0, 1))
        grad, x = (t.unflatten(0, (ctx.n_rows, -1)).transpose(1, 2).flatten(2) for t in (grad, x))
        sums = {"bias": lambda: grad.sum(2), "weight": lambda: torch.bmm(grad, x.mT)[..., None, None]}
        return below, [sums[name]() for name in self.names]


def make_tap(module: nn.Module, names: Sequence[str]) -> Tap:
    """Return the fastest tap that is right for a module and its trainable parameters."""
    plain_names = set(names) <= {"weight", "bias"}
    timm = sys.modules.get("timm.layers")  # never imported here: without it no module is timm's
    batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, getattr(timm, "BatchNormAct2d", None))
    if plain_names and type(module) in batch_norms and module.running_var is not None:
        return BatchNormTap(module, names)  # type: ignore[arg-type]
    layer_norm = type(module) in (nn.LayerNorm, getattr(timm, "LayerNorm", None))
    if plain_names and layer_norm and len(module.normalized_shape) == 1:  # type: ignore[arg-type]
        return LayerNormTap(module, names)
    if plain_names and type(module) is nn.Linear:
        return LinearTap(module, names)
    if plain_names and type(module) is nn.Conv2d:
        form = (module.kernel_size, module.stride, module.padding, module.groups)
        if form == ((1, 1), (1, 1), (0, 0), 1):
            return PointwiseTap(module, names)
    return Tap(module, names)
