"""Which tensor of what a network returns holds its features, and how they are pooled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..exceptions import BackboneError


@dataclass(frozen=True)
class Features:
    """A forward hook that makes features of shape (n, d) of what a network returns.

    `key` is that of a tensor in a sequence or mapping; None where the network returns a tensor. Maps are
    averaged over the axes `places`, of which flat features have none.
    """

    key: Any
    places: tuple[int, ...]

    def __call__(self, net: nn.Module, given: Any, out: Any) -> Tensor:
        """Return the features."""
        found = out if self.key is None else out[self.key]
        return found.mean(self.places) if self.places else found


@torch.no_grad()
def takes(net: nn.Module, batch: Tensor) -> bool:
    """Return whether a network runs on a batch."""
    try:
        net(batch.clone())
    except Exception:  # torch, timm and modules raise anything for what they do not take
        return False
    return True


@torch.no_grad()
def settle(net: nn.Module, probe: Tensor, name: str) -> int:
    """Make a network give features of shape (n, d), by hooks if it does not; return d.

    One that writes into its input gets a copy of it. Raise BackboneError unless the network takes a
    `probe` of two rows, and one row of it, and returns features by the rules of `find_features`.
    """
    given = probe.clone()
    out = _run(net, given, name)
    if not torch.equal(given, probe):
        net.register_forward_pre_hook(_copied)
    found = find_features(net, out, probe.shape, name)
    if found != Features(None, ()):
        net.register_forward_hook(found)
    both, one = (tuple(_run(net, batch, name).shape) for batch in (probe, probe[:1]))
    if one != (1, *both[1:]):
        raise BackboneError(
            f"Expected {name} to return features of shape (n, d), got {both} of two rows and {one} of "
            "one. Wrap it in a module that leaves the rows."
        )
    return both[1]


def find_features(net: nn.Module, out: Any, shape: Sequence[int], name: str) -> Features:
    """Return where features are in what a network returns for a batch of a shape.

    A sequence or mapping gives the tensor "pooler_output", its only tensor, or its only one of shape
    (n, d). Maps of shape (n, d, H, W) or (n, H, W, d) are averaged over their places. Raise
    BackboneError where this leaves it open.
    """
    entries: Mapping[Any, Any] = {None: out}
    if isinstance(out, (Mapping, Sequence)):
        entries = out if isinstance(out, Mapping) else dict(enumerate(out))
    tensors = {key: each for key, each in entries.items() if isinstance(each, Tensor)}
    flat = [key for key, each in tensors.items() if each.ndim == 2 and len(each) == shape[0]]
    if "pooler_output" in tensors:
        keys = ["pooler_output"]
    else:
        keys = list(tensors) if len(tensors) == 1 else flat
    if len(keys) == 1:
        found = tensors[keys[0]]
        if found.ndim in (2, 4) and len(found) == shape[0] and found.is_floating_point():
            last = found.ndim == 4 and is_channels_last(net, found.shape, shape[2:])
            return Features(keys[0], () if found.ndim == 2 else (1, 2) if last else (2, 3))
    raise BackboneError(_advice(name, type(out).__name__, tensors, shape[0]))


@contextmanager
def activations(net: nn.Module) -> Iterator[list[int]]:
    """Yield how many numbers each module without children gives, in the passes that happen meanwhile."""
    numbers: list[int] = []

    def count(module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            numbers.append(out.numel())

    leaves = [module for module in net.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        yield numbers
    finally:
        for hook in hooks:
            hook.remove()


def is_channels_last(net: nn.Module, shape: Sequence[int], size: Sequence[int]) -> bool:
    """Return whether maps of a shape have their channels last, for pictures of `size`.

    The axes whose proportions are those of the pictures are the places; a network that says "NHWC"
    decides where both could be.
    """
    first, last = (distortion(shape[i], shape[i + 1], size) for i in (2, 1))
    return last < first or (last == first and getattr(net, "output_fmt", "NCHW") == "NHWC")


def distortion(n_rows: int, n_columns: int, size: Sequence[int]) -> float:
    """Return by how many rows a map is too high or too low for the shape of the pictures."""
    return abs(n_rows - n_columns * size[0] / size[1]) if len(size) == 2 else 0.0


def _advice(name: str, kind: str, tensors: Mapping[Any, Tensor], n_rows: int) -> str:
    shapes = {key: tuple(each.shape) for key, each in tensors.items()}
    got = f"{kind} {shapes.get(None, shapes)}" if shapes else f"{kind} without tensors"
    expected = (
        f"Expected {name} to return features of shape (n, d), maps of shape (n, d, H, W), or one such "
        f"tensor among others, got {got} for a batch. Wrap it in a module that "
    )
    usable = {key: each for key, each in tensors.items() if each.ndim and len(each) == n_rows}
    if not usable:
        return f"{expected}returns a tensor with a row for each row of the batch."
    tokens = [key for key, each in usable.items() if each.ndim == 3]
    key = (*tokens, *usable)[0]
    found = usable[key]
    picked = "" if key is None else f"[{key!r}]"
    if not found.is_floating_point():
        picked += ".abs()" if found.is_complex() else ".float()"
    pooled = {1: "[:, None]", 3: "[:, 0]  # the class token; .mean(1) is the average of all"}
    picked += pooled.get(found.ndim, ".flatten(2).mean(2)" if found.ndim > 4 else "")
    return (
        f"{expected}picks and pools:\n"
        "class Features(torch.nn.Module):\n"
        "    def __init__(self, net): super().__init__(); self.net = net\n"
        f"    def forward(self, x): return self.net(x){picked}"
    )


def _run(net: nn.Module, batch: Tensor, name: str) -> Any:
    try:
        return net(batch)
    except Exception as error:  # torch, timm and modules raise anything for what they do not take
        given = "vectors" if batch.ndim == 2 else "pictures"
        widths = (part.in_channels for part in net.modules() if isinstance(part, nn.Conv2d))
        width = next(widths, 3)
        channels = "" if width in (1, 3) else f" Its first convolution takes {width} channels."
        raise BackboneError(
            f"Expected a backbone that takes {given} as X holds them, batches of shape "
            f"(n, {', '.join(map(str, batch.shape[1:]))}); {name} fails on one: {error}.{channels} Pass "
            "pictures as (n, H, W) or (n, H, W, 3) and vectors as (n, n_features), or another backbone; "
            "wrap one that needs more, or by name, in a module whose forward takes the batch alone."
        ) from error


def _copied(net: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give a network a copy of its batch."""
    return (given[0].clone(), *given[1:])
