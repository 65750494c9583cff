"""Where a ladder leans on a network: which tensors of its blocks, and how each is pooled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.outputs import distortion, is_channels_last
from ..backbones.transformers_models import TransformersModel
from ..exceptions import JacobianError, SubsetError
from .blocks import find_blocks, is_activation

SIDES = ("ladder-grid", "ladder-gap")
_GRID = 4  # places a side that are kept apart
_MOST_LEADING = 256  # class, register and prompt tokens


@dataclass(frozen=True)
class Rung:
    """One tensor of a block in a forward pass, and its pooling.

    `index` counts the tensors that the module at `path` takes or gives (`of`) over all of its calls in a
    pass. `layout` is "vector", "tokens" (n, tokens, width), "sequence" (n, channels, length), "channels
    first" or "channels last". Behind `n_leading` tokens lie those of the grid, if they lie on one.
    """

    side: str
    path: str
    of: str
    index: int
    layout: str
    n_leading: int = 0
    grid: tuple[int, int] | None = None

    def pool(self, seen: Tensor) -> Tensor:
        """Return the averages of a batch, of shape (n, width)."""
        n_axes = {"vector": 2, "tokens": 3, "sequence": 3}.get(self.layout, 4)
        if seen.ndim != n_axes:
            raise changed_shape(self.path, f"{n_axes} axes", seen.ndim)
        if self.layout == "vector":
            return seen
        maps = seen.movedim(-1, 1) if self.layout in ("tokens", "channels last") else seen
        if self.side == "ladder-gap" or (self.layout == "tokens" and self.grid is None):
            return maps.mean(tuple(range(2, n_axes)))
        if self.grid is not None:
            n_tokens = self.n_leading + math.prod(self.grid)
            if seen.shape[1] != n_tokens:
                raise changed_shape(self.path, f"{n_tokens} tokens", seen.shape[1])
            maps = maps[:, :, self.n_leading :].unflatten(2, self.grid)
        if self.layout == "sequence":
            return nn.functional.adaptive_avg_pool1d(maps, min(_GRID, maps.shape[2])).flatten(1)
        height, width = (min(_GRID, size) for size in maps.shape[2:])
        pooled = nn.functional.adaptive_avg_pool2d(maps, (height, width)).flatten(1)
        return torch.cat([seen[:, 0], pooled], dim=1) if self.n_leading else pooled


def changed_shape(path: str, expected: str, got: int | None) -> JacobianError:
    """Return the error of a network whose blocks change their shape from batch to batch."""
    return JacobianError(
        f"Expected {expected} of {path!r} in every pass, got {got}: blocks that change their shape from "
        'batch to batch have no ladder. Choose trainable="head", or pictures of one size.'
    )


def tensors_of(given: Any) -> list[Tensor]:
    """Return the tensors of floating-point numbers in what a module takes or gives."""
    if isinstance(given, Tensor):
        return [given] if given.is_floating_point() else []
    if isinstance(given, dict):
        given = given.values()
    elif not isinstance(given, (tuple, list)):
        return []
    return [tensor for each in given for tensor in tensors_of(each)]


@dataclass(frozen=True)
class _Seen:
    """A tensor that passed a module of a block, and how its numbers lie."""

    block: str
    path: str
    of: str
    index: int
    tensor: Tensor
    layout: dict[str, Any]

    @property
    def n_channels(self) -> int:
        first = self.layout["layout"] in ("channels first", "sequence")
        return self.tensor.shape[1 if first else -1]

    @property
    def n_places(self) -> int:
        return self.tensor[0].numel() // self.n_channels


@torch.no_grad()
def find_rungs(net: nn.Module, probe: Tensor, sides: Sequence[str]) -> list[Rung]:
    """Return the rungs of a ladder, side by side and in the order of the blocks, from one forward pass.

    "ladder-grid" is what every block gives, averaged on a grid of at most 4 x 4 places, and the class
    token. "ladder-gap" is, within every block, the widest activation after a nonlinearity that is no
    coarser than the block's result (of a mobile block the depthwise convolution's, of a transformer's
    block the one within its MLP), averaged over all places; where a block calls no module of a
    nonlinearity, the widest input of a layer with weights.

    The network's own features are no rung, and a second side that pools what the first one does (of
    perceptrons) is left out.
    """
    blocks = find_blocks(net)
    if not blocks:
        raise SubsetError(
            'Expected a network of repeated blocks for trainable="ladder", got '
            f"{type(net).__name__}, in which there are none: no two modules with weights in a "
            'Sequential, ModuleList or ModuleDict, and no two nonlinearities. trainable="head" fits '
            "every network."
        )
    giving, features, seen = _giving(net, probe, blocks)
    rungs: list[Rung] = []
    for side in sides:
        beside = []
        for block in giving:
            mine = [each for each in seen if each.block == block and each.tensor is not features]
            found = [each for each in mine if each.path == block and each.of == "output"]
            if side == "ladder-gap" and found and not is_activation(net.get_submodule(block)):
                found = _inside(mine, min(each.n_places for each in found))
            beside += [Rung(side, each.path, each.of, each.index, **each.layout) for each in found]
        as_first = [replace(rung, side=sides[0]) for rung in beside]
        if rungs != as_first or any(rung.layout != "vector" for rung in rungs):
            rungs += beside
    if not rungs:
        raise SubsetError(
            f'Expected blocks that give tensors for trainable="ladder", got {type(net).__name__}, whose '
            f"blocks ({', '.join(blocks[:3])}) give none with a row for each row of the batch. "
            'trainable="head" fits every network.'
        )
    return rungs


def _giving(net: nn.Module, probe: Tensor, blocks: list[str]) -> tuple[list[str], Tensor, list[_Seen]]:
    """Return the blocks that give rows, the features, and what passed the blocks.

    A block that gives none (the transformers of a MobileViT see patches as rows) is replaced by the
    smallest module around it that does.
    """
    while True:
        features, seen = _watched(net, probe, blocks)
        giving = {each.block for each in seen if each.path == each.block and each.of == "output"}
        around = [block if block in giving else block.rpartition(".")[0] for block in blocks]
        found = [
            outer
            for outer in dict.fromkeys(around)
            if outer in giving or (outer and not any(each.startswith(f"{outer}.") for each in giving))
        ]
        if found == blocks:
            return blocks, features, seen
        blocks = found


def _watched(net: nn.Module, probe: Tensor, blocks: list[str]) -> tuple[Tensor, list[_Seen]]:
    """Return the features, and the tensors that passed the blocks and the layers within them."""
    seen: list[_Seen] = []
    n_seen: Counter[tuple[str, str]] = Counter()
    entered: list[str] = []
    hooks: list[RemovableHandle] = []
    patches = _patches(net, probe.shape[2:])
    widths = {block: _conv1d_widths(net.get_submodule(block)) for block in blocks}

    def note(path: str, of: str, given: Any) -> None:
        for tensor in tensors_of(given):
            layout = _layout(net, tensor, len(probe), probe.shape[2:], patches)
            if layout and entered:
                if tensor.ndim == 3 and tensor.shape[1] in widths[entered[-1]]:
                    layout = {"layout": "sequence"}
                seen.append(_Seen(entered[-1], path, of, n_seen[path, of], tensor, layout))
            n_seen[path, of] += 1

    def before(path: str, module: nn.Module, given: Any) -> None:
        if path in blocks:
            entered.append(path)
        if path in blocks or any(p.ndim > 1 for p in module.parameters(recurse=False)):
            note(path, "input", given)

    def after(path: str, module: nn.Module, _: Any, given: Any) -> None:
        if path in blocks or is_activation(module):
            note(path, "output", given)
        if path in blocks:
            entered.pop()

    # a module that several blocks share, as one ReLU often is, has one name and one count of calls
    modules: dict[nn.Module, str] = {}
    for block in blocks:
        for name, module in net.get_submodule(block).named_modules():
            modules.setdefault(module, f"{block}.{name}" if name else block)
    for module, path in modules.items():
        hooks.append(module.register_forward_pre_hook(partial(before, path)))
        hooks.append(module.register_forward_hook(partial(after, path)))
    try:
        return net(probe), seen
    finally:
        for hook in hooks:
            hook.remove()


def _inside(seen: list[_Seen], n_places: int) -> list[_Seen]:
    """Return the widest activation within a block, the last one of several, or nothing."""
    ends = {id(each.tensor) for each in seen if each.path == each.block}
    within = [each for each in seen if id(each.tensor) not in ends and each.n_places >= n_places]
    nonlinear = [each for each in within if each.of == "output"]
    widest = max((each.n_channels for each in nonlinear or within), default=0)
    return [each for each in nonlinear or within if each.n_channels == widest][-1:]


def _conv1d_widths(block: nn.Module) -> set[int]:
    """Return the numbers of channels that one-dimensional convolutions of a block take or give."""
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv1d)]
    return {width for conv in convolutions for width in (conv.in_channels, conv.out_channels)}


def _patches(net: nn.Module, size: Sequence[int]) -> tuple[int, int] | None:
    """Return the grid of patches into which a transformer cuts pictures, where there is one."""
    if isinstance(net, TransformersModel):
        return net.grid
    if len(size) == 2:
        for module in net.modules():
            cut = getattr(module, "dynamic_feat_size", None)  # of timm's patch embeddings
            if cut is not None:
                n_rows, n_columns = cut(size)
                return n_rows, n_columns
    return None


def _layout(
    net: nn.Module, tensor: Tensor, n: int, size: Sequence[int], patches: tuple[int, int] | None
) -> dict[str, Any]:
    """Return how the numbers of a row lie in a tensor; nothing where it has no rows, or another form."""
    if not tensor.ndim or len(tensor) != n:
        return {}
    if tensor.ndim == 2:
        return {"layout": "vector"}
    if tensor.ndim == 3:
        return {"layout": "tokens"} | _token_grid(tensor.shape[1], size, patches)
    if tensor.ndim == 4:
        last = is_channels_last(net, tensor.shape, size)
        return {"layout": "channels last" if last else "channels first"}
    return {}


def _token_grid(n_tokens: int, size: Sequence[int], patches: tuple[int, int] | None) -> dict[str, Any]:
    """Return the leading tokens, and the grid of the others.

    The grid is that of the patches, where it is known and fits; else the one nearest to the pictures'
    shape, with the fewest leading tokens.
    """
    if len(size) != 2:
        return {}
    if patches is not None and 0 <= n_tokens - math.prod(patches) <= _MOST_LEADING:
        return {"n_leading": n_tokens - math.prod(patches), "grid": patches}
    found: list[tuple[float, int, tuple[int, int]]] = []
    for n_leading in range(min(n_tokens, _MOST_LEADING)):
        rest = n_tokens - n_leading
        n_rows = max(1, round(math.sqrt(rest * size[0] / size[1])))
        bent = distortion(n_rows, rest // n_rows, size)
        if rest % n_rows == 0 and bent <= 1:
            found.append((bent, n_leading, (n_rows, rest // n_rows)))
    return dict(zip(("n_leading", "grid"), min(found)[1:], strict=True)) if found else {}
