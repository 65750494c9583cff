"""The repeated blocks of a network, found by its structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# by name, because timm and transformers are imported only where a network of theirs is built
_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "transformers.activations")
_GATES = ("sigmoid", "softmax", "attention")
_Child = tuple[str, nn.Module]


def is_activation(module: nn.Module) -> bool:
    """Return whether a module is an elementwise nonlinearity, gates between 0 and 1 excepted."""
    return any(
        kind.__module__ in _ACTIVATIONS and not kind.__name__.lower().endswith(_GATES)
        for kind in type(module).__mro__
    )


def find_blocks(net: nn.Module) -> list[str]:
    """Return the names of a network's repeated blocks, in the order in which they are defined.

    A block is a module with at least two weights (matrices or convolutions) in a chain of such:
    one of at least two in a `Sequential`, `ModuleList` or `ModuleDict`, however deep those are nested
    in one another. A block that holds such a chain itself is a stage, and its own blocks count. Where no
    such chain exists, attributes of one class count as one (``s1`` to ``s4`` of a RegNet); then modules
    of one weight (``Sequential(ConvNormAct, ConvNormAct)``); then nonlinearities (VGG, perceptrons).

    >>> from torch import nn
    >>> from fastntk_sk.tangents.blocks import find_blocks
    >>> find_blocks(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU()))
    ['1', '3']
    """
    for is_block in (partial(_has_weights, n=2), partial(_has_weights, n=1), is_activation):
        for children in (_in_containers, _alike):
            found = _chained(net, "", children, is_block)
            if found:
                return found
    return [info["module"] for info in getattr(net, "feature_info", [])]


def _has_weights(module: nn.Module, n: int) -> bool:
    """Return whether the parts of a module hold weights, and the module at least n."""
    weights = sum(p.ndim > 1 for p in module.parameters())
    own = sum(p.ndim > 1 for p in module.parameters(recurse=False))
    return weights >= n and weights > own


def _in_containers(module: nn.Module) -> Iterator[_Child]:
    """Yield what a module holds in containers, however nested, and no attribute of its own."""
    inside = isinstance(module, _CONTAINERS)
    for name, child in module.named_children():
        if isinstance(child, _CONTAINERS):
            yield from ((f"{name}.{rest}", each) for rest, each in _in_containers(child))
        elif inside:
            yield name, child


def _alike(module: nn.Module) -> Iterator[_Child]:
    """Yield the attributes of a module whose class is that of another one too."""
    children = dict(module.named_children())
    n_alike = Counter(type(child) for child in children.values())
    yield from ((name, child) for name, child in children.items() if n_alike[type(child)] > 1)


def _chained(
    module: nn.Module,
    prefix: str,
    children: Callable[[nn.Module], Iterator[_Child]],
    is_block: Callable[[nn.Module], bool],
) -> list[str]:
    """Return the blocks of the chains in a module; of those in its attributes where it has none."""
    found = [(prefix + name, child) for name, child in children(module) if is_block(child)]
    if len(found) < 2:
        return [
            each
            for name, child in module.named_children()
            for each in _chained(child, f"{prefix}{name}.", children, is_block)
        ]
    return _without_stages(found, children, is_block)


def _without_stages(
    found: list[_Child],
    children: Callable[[nn.Module], Iterator[_Child]],
    is_block: Callable[[nn.Module], bool],
) -> list[str]:
    """Return the names of blocks, and in place of those that are stages the names of their own."""
    inner = {
        name: [(f"{name}.{rest}", each) for rest, each in children(child) if is_block(each)]
        for name, child in found
    }
    stages = {type(child) for name, child in found if len(inner[name]) > 1}
    return [
        each
        for name, child in found
        for each in (
            _without_stages(inner[name], children, is_block)
            if type(child) in stages and inner[name]
            else [name]
        )
    ]
