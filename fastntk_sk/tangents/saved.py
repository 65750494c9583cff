"""What a saved model brings along, instead of drawing or measuring it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..backbones.loading import Backbone, load_backbone
from ..exceptions import StateMismatchError
from .subsets import Subset


@dataclass(frozen=True)
class Saved:
    """Parts of a `LinearizedModel` that come from a file.

    Parameters
    ----------
    network : dict of str to Tensor
        The tensors of `own_names`.

    directions : Tensor of shape (C, d)
        V.

    units : tuple of float
        scale_h, scale_J and position_gap.

    moved : Tensor of shape (k,), default=None
        Of a fine-tuned anchor.

    learns : bool, default=True
        Whether statistics will be kept; a public adapter has none, and needs no memory for them.

    ladder : dict of str to Tensor, default={}
        `Ladder.tensors`, where there is a ladder.
    """

    network: dict[str, Tensor]
    directions: Tensor
    units: tuple[float, float, float]
    moved: Tensor | None = None
    learns: bool = True
    ladder: dict[str, Tensor] = field(default_factory=dict)

    def check_prompts(self, n_prompts: int, width: int) -> None:
        """Raise StateMismatchError unless the prompts have this number and this width."""
        prompts = [tensor for name, tensor in self.network.items() if name.endswith(".prompt")]
        rows = {len(tensor) if tensor.ndim == 2 and tensor.numel() else 0 for tensor in prompts}
        if rows != {n_prompts}:
            raise StateMismatchError(
                f"Expected {n_prompts} saved prompt tokens, got {sorted(rows)}. Restore a backup."
            )
        widths = {tensor.shape[1] for tensor in prompts}
        if widths != {width}:
            raise StateMismatchError(
                f"Expected saved prompt tokens of width {width}, got {sorted(widths)}. Load with the "
                "backbone that was saved: backbone=..."
            )

    def check_mlp(self, n_features: int | None) -> None:
        """Raise StateMismatchError unless the first weights of an "mlp" of this size are there."""
        width = len(load_backbone("mlp").net.get_parameter("1.weight"))
        first = self.network.get("1.weight")
        shape = None if first is None else tuple(first.shape)
        if shape != (width, n_features):
            raise StateMismatchError(
                f'Expected the weights of an "mlp" on {n_features} features, got {shape}. Load with the '
                "backbone that was saved: backbone=..."
            )

    def check_directions(self, n_classes: int, d: int, dtype: torch.dtype) -> None:
        """Raise StateMismatchError unless V reads the backbone's features."""
        if tuple(self.directions.shape) != (n_classes, d) or self.directions.dtype != dtype:
            raise StateMismatchError(
                f"Expected probe directions of {n_classes} classes on {d} features in {dtype}, got "
                f"{tuple(self.directions.shape)} in {self.directions.dtype}. Load with the backbone "
                "that was saved: backbone=..."
            )

    def install(self, backbone: Backbone, subset: Subset) -> None:
        """Put the tensors into a backbone, whose own they must be.

        Raises
        ------
        StateMismatchError
            If names, shapes or dtypes differ from the backbone's.
        """
        names = own_names(backbone, None if self.moved is None else subset)
        present = backbone.net.state_dict()
        expected = {name: (present[name].shape, present[name].dtype) for name in names}
        got = {name: (tensor.shape, tensor.dtype) for name, tensor in self.network.items()}
        differing = sorted(n for n in got.keys() | expected.keys() if got.get(n) != expected.get(n))
        if differing:
            raise StateMismatchError(
                f"The saved tensors {differing[:5]} do not fit backbone {backbone.name!r}. Load with "
                "the backbone that was saved: backbone=..."
            )
        backbone.net.load_state_dict(self.network, strict=False)


def own_names(backbone: Backbone, tuned: Subset | None) -> list[str]:
    """Return the names of the tensors that a backbone's source does not give.

    Parameters
    ----------
    backbone : Backbone
        With its prompts.

    tuned : Subset or None
        The trainable subset, if SGD has moved it.

    Returns
    -------
    names : list of str
        Prompts, everything of the "mlp", and the subset.
    """
    moved = () if tuned is None else tuned.names
    return [
        name
        for name in backbone.net.state_dict()
        if backbone.name == "mlp" or name.endswith(".prompt") or name in moved
    ]
