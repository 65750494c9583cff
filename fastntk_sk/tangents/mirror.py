"""augment="flip": what is computed of a picture is the mean over it and its mirror image."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def averaged(function: Callable[[Tensor], Tensor], batch: Tensor, augment: str | None) -> Tensor:
    """Return what a function gives for a batch, or with "flip" its mean over pictures and mirror images.

    >>> import torch
    >>> from fastntk_sk.tangents.mirror import averaged
    >>> averaged(lambda x: x[..., 0], torch.tensor([[1.0, 2.0, 5.0]]), "flip")
    tensor([3.])
    """
    if augment is None:
        return function(batch)
    return (function(batch) + function(batch.flip(-1))) / 2


class Mirrored(nn.Module):
    """A module's scores of pictures, averaged with those of their mirror images."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of a batch whose last axis is the width."""
        return averaged(self.module, x, "flip")
