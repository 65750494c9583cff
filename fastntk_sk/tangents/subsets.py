"""Which parameters of a frozen network are trainable, and visual prompt tokens."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.transformers_models import Tokens, TransformersModel
from ..exceptions import SubsetError
from .blocks import find_blocks
from .lora import LORA_A, LORA_B, takes_lora
from .rungs import SIDES

KINDS = (
    "auto",
    "norm",
    "bias",
    "prompt",
    "prompt-deep",
    "lora",
    "head",
    "full",
    "ladder",
    "ladder-grid",
    "ladder-gap",
)


@dataclass(frozen=True)
class Subset:
    """The trainable parameters theta of a network, by name and shape, as one flat vector in R^p."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def size(self) -> int:
        """Number of scalars p."""
        return sum(shape.numel() for shape in self.shapes)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut a flat vector of shape (p,) into named tensors."""
        parts = torch.split(flat, [shape.numel() for shape in self.shapes])
        return {n: t.reshape(s) for n, t, s in zip(self.names, parts, self.shapes, strict=True)}


def select(net: nn.Module, trainable: str | Sequence[str]) -> Subset:
    """Find the trainable subset in a network, in the order of `net.named_parameters()`.

    `trainable` is a kind ("norm", "bias", "prompt", "prompt-deep", "lora", "head", "full"), a glob
    pattern of parameter names, or a sequence of those, which is their union. Prompt tokens and LoRA
    layers must be there already.

    >>> from torch import nn
    >>> from fastntk_sk.tangents.subsets import select
    >>> select(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "norm").names
    ('1.weight', '1.bias')
    """
    parameters = dict(net.named_parameters())
    chosen: set[str] = set()
    for entry in as_entries(trainable):
        found = _matches(net, entry)
        if not found and entry != "head":
            lacks = ", which calls no attention projection or pointwise convolution as a layer"
            raise SubsetError(
                f"trainable={entry!r} matches no parameter of {type(net).__name__}"
                f"{lacks if entry == 'lora' else ''}. {_what_fits(net)}"
            )
        chosen.update(found)
    names = tuple(name for name in parameters if name in chosen)
    return Subset(names, tuple(parameters[name].shape for name in names))


def as_entries(trainable: str | Sequence[str]) -> tuple[str, ...]:
    """Return `trainable` as a tuple of kinds and patterns."""
    entries = (trainable,) if isinstance(trainable, str) else tuple(trainable)
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise SubsetError(
            f"Expected trainable to be one of {KINDS}, a glob pattern of parameter names, or a "
            f"sequence of those; got {trainable!r}."
        )
    return entries


def resolve(trainable: str | Sequence[str], net: nn.Module, anchor: str) -> str | Sequence[str]:
    """Return what "auto" stands for in a network; anything else as it is.

    At the pretrained anchor it is a ladder, or "head" where no blocks are repeated; at a fine-tuned one
    the subset of the paper: the prompts of a Vision Transformer, else the norm layers, as in a network
    that was trained without prompts.
    """
    if trainable not in ("auto", ("auto",)):
        return trainable
    if anchor != "pretrained":
        return "prompt" if anchor == "finetuned" and _tokens(net) else "norm"
    return "ladder" if find_blocks(net) else "head"


def split_ladder(trainable: str | Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the sides of a ladder, and what is trained within the network ("head" stands for nothing).

    >>> from fastntk_sk.tangents.subsets import split_ladder
    >>> split_ladder(["norm", "ladder"])
    (('ladder-grid', 'ladder-gap'), ('norm',))
    """
    entries = as_entries(trainable)
    sides = tuple(side for side in SIDES if side in entries or "ladder" in entries)
    return sides, tuple(entry for entry in entries if entry not in (*SIDES, "ladder")) or ("head",)


def _matches(net: nn.Module, entry: str) -> set[str]:
    if entry == "head":
        return set()
    if entry == "norm":
        return {
            f"{path}.{name}" if path else name
            for path, module in net.named_modules()
            if _is_norm(module)
            for name, _ in module.named_parameters(recurse=False)
        }
    names = [name for name, _ in net.named_parameters() if not name.endswith(LORA_A)]
    if entry == "bias":
        return {name for name in names if name.endswith("bias")}
    if entry in ("prompt", "prompt-deep"):
        return {name for name in names if name.endswith(".prompt")}
    if entry == "lora":
        return {name for name in names if name.endswith(LORA_B)}
    pattern = "*" if entry == "full" else entry
    return {name for name in names if fnmatchcase(name, pattern)}


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and "weight" in module._parameters


def _what_fits(net: nn.Module) -> str:
    kinds = ("norm", "bias", "full")
    sizes = {
        kind: sum(net.get_parameter(name).numel() for name in _matches(net, kind)) for kind in kinds
    }
    fits = ["'ladder' (with anchor=\"pretrained\")"] if find_blocks(net) else []
    fits += [f"{kind!r} (p={size:,})" for kind, size in sizes.items() if size] + ["'head' (p=0)"]
    if _tokens(net):
        fits.append("'prompt', 'prompt-deep'")
    if takes_lora(net):
        fits.append("'lora'")
    names = [name for name, _ in net.named_parameters()]
    examples = ", ".join(dict.fromkeys([names[0], names[-1]])) if names else "none"
    return (
        f"What fits this backbone: {', '.join(fits)}, or a glob pattern of parameter names "
        f"such as {examples}."
    )


class PromptTokens(nn.Module):
    """Insert trainable tokens after the prefix (class and register) tokens.

    `replace` overwrites the prompts of the layer below (deep prompts) instead of inserting.
    """

    def __init__(self, prompt: Tensor, prefix: int, replace: bool) -> None:
        super().__init__()
        self.prompt = nn.Parameter(prompt, requires_grad=False)
        self.prefix, self.replace = prefix, replace

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens of shape (n, t, width) to (n, t + n_prompts, width), or (n, t, width)."""
        rest = self.prefix + (len(self.prompt) if self.replace else 0)
        prompt = self.prompt.expand(tokens.shape[0], -1, -1)  # exporters lose len
        return torch.cat([tokens[:, : self.prefix], prompt, tokens[:, rest:]], dim=1)


class _DropPrompts(nn.Module):
    def __init__(self, prefix: int, n_prompts: int) -> None:
        super().__init__()
        self.prefix, self.n_prompts = prefix, n_prompts

    def forward(self, tokens: Tensor) -> Tensor:
        rest = tokens[:, self.prefix + self.n_prompts :]
        return torch.cat([tokens[:, : self.prefix], rest], dim=1)


class _Prompted(nn.Sequential):
    """A block with what inserts prompts before it, or drops them after it.

    `place` is that of the block, which alone takes what else blocks are called with.
    """

    def __init__(self, *parts: nn.Module, place: int) -> None:
        super().__init__(*parts)
        self.place = place

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Map tokens of shape (n, t, width) to tokens."""
        for i, part in enumerate(self):
            tokens = part(tokens, *args, **kwargs) if i == self.place else part(tokens)
        return tokens


def _tokens(net: nn.Module) -> Tokens | None:
    """Return the blocks and tokens of a Vision Transformer of timm or transformers."""
    if isinstance(net, TransformersModel):
        return net.tokens
    timm = sys.modules.get("timm.models.vision_transformer")  # no network is timm's without it
    if timm is None or not isinstance(net, timm.VisionTransformer):
        return None
    return Tokens(net.blocks, net.num_prefix_tokens, net.patch_embed.patch_size, net.embed_dim)


def prompt_width(net: nn.Module) -> int:
    """Return the width of a network's prompt tokens; raise SubsetError if it cannot take any."""
    tokens = _tokens(net)
    if tokens is None:
        raise SubsetError(
            "Prompt tokens need a Vision Transformer of timm or transformers (such as "
            f"'vit_tiny_patch16_224'), got {type(net).__name__}. " + _what_fits(net)
        )
    return tokens.width


def insert_prompts(net: nn.Module, n_prompts: int, *, deep: bool, generator: torch.Generator) -> None:
    r"""Insert visual prompt tokens (arXiv:2203.12119) into a Vision Transformer, in place.

    The tokens enter before the first block (`deep`: afresh before every block) and leave after the
    last one, so that the final norm and the pooling see the layout that they were trained with.
    They are drawn uniformly from :math:`\pm \sqrt{6 / (3 \cdot patch^2 + width)}`.
    """
    width = prompt_width(net)
    blocks, prefix, patch, _ = _tokens(net)  # type: ignore[misc]
    bound = math.sqrt(6 / (3 * math.prod(patch) + width))
    for i in range(len(blocks)):
        if i == 0 or deep:
            draw = torch.rand(n_prompts, width, generator=generator, dtype=torch.float64)
            prompt = (bound * (2 * draw - 1)).float()
            blocks[i] = _Prompted(PromptTokens(prompt, prefix, i > 0), blocks[i], place=1)
    blocks[-1] = _Prompted(blocks[-1], _DropPrompts(prefix, n_prompts), place=0)
