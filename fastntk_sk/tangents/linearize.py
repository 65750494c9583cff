"""From a backbone to the model that is linear in a subset of its parameters, in measured units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..backbones.loading import Backbone, load_backbone, origin
from ..exceptions import JacobianError, PrecisionError, SubsetError
from ..randomness import generator
from ..sums.memory import AUTO_COMPONENTS, check_memory, choose_components
from .heap import kept_heap
from .jacobians import TangentNetwork
from .ladder import Ladder
from .model import LinearizedModel, relative_gap, working_dtype
from .projection import Projection
from .saved import Saved
from .subsets import insert_prompts, prompt_width, resolve, select, split_ladder

_SYNTHETIC_ROWS = 100
_PRECISION_ROWS = 8
_LARGEST_ERROR = 0.05  # of Jacobians in bfloat16: transformers have 1-2 %, batch norms 20-40 %


def linearize(
    backbone: Any,
    X: Any,
    *,
    n_classes: int,
    kernel: str,
    n_directions: int,
    trainable: str | Sequence[str],
    anchor: str,
    n_prompts: int,
    n_components: int | str | None,
    pretrained: bool,
    image_size: int | tuple[int, int] | None,
    batch_size: int,
    n_features: int | None,
    precision: str,
    compiled: bool,
    device: str,
    seed: int,
    saved: Saved | None = None,
) -> LinearizedModel:
    """Load the backbone, choose the subset and measure the energy units.

    The arguments are those of `FastNTKClassifier`; `saved` is given when one is loaded.

    Raises
    ------
    StateMismatchError
        If what was saved does not fit the backbone.

    SubsetError
        If the trainable subset does not exist in the backbone.

    PrecisionError
        If bfloat16 is too coarse for the backbone's Jacobians.

    InsufficientMemoryError
        If the statistics would not fit; raised before they are allocated.
    """
    dtype = working_dtype(precision)
    loaded = load_backbone(
        backbone,
        pretrained=pretrained,
        image_size=image_size,
        X=X,
        n_features=n_features,
        seed=seed,
    )
    sides, entries = split_ladder(resolve(trainable, loaded.net, anchor))
    prompts = {"prompt", "prompt-deep"} & set(entries)
    if prompts:
        if saved is not None:
            saved.check_prompts(n_prompts, prompt_width(loaded.net))
        insert_prompts(
            loaded.net,
            n_prompts,
            deep="prompt-deep" in prompts,
            generator=generator(seed, "prompts"),
        )
    loaded.net.to(dtype=dtype, device=device)
    subset = select(loaded.net, entries)
    if saved is not None:
        saved.install(loaded, subset)
    n_synthetic = _SYNTHETIC_ROWS if saved is None else 2
    synthetic = loaded.synthetic(n_synthetic, seed, n_features, dtype).to(device)
    features = _first_pass(loaded, synthetic[:2])
    alone = _first_pass(loaded, synthetic[:1])
    if features.ndim != 2 or alone.shape != (1, features.shape[1]):
        raise SubsetError(
            "Expected the backbone to return features of shape (n, d), got "
            f"{tuple(features.shape)} of two rows and {tuple(alone.shape)} of one. Wrap it in a module "
            "that pools them, and leaves the rows."
        )
    d, n_rows = features.shape[1], n_classes if kernel == "full" else n_directions
    if not subset.size and anchor == "pretrained":
        n_rows = 0  # nothing is linearised: V would read no tangents
    if saved is not None:
        saved.check_readout(n_rows, d, dtype)
    try:
        ladder = Ladder(loaded.net, sides, synthetic[:2]) if sides else None
    except SubsetError:
        if trainable != "auto":
            raise
        ladder, sides = None, ()
    if ladder is not None:
        if saved is None:
            width = AUTO_COMPONENTS if n_components == "auto" else n_components
            ladder.draw_sketch(
                sum(ladder.widths) * len(ladder.sides) if width is None else int(width), seed
            )
        else:
            ladder.install(saved.ladder)
        d = ladder.width
    k = choose_components(n_components, subset.size, kernel, d, n_rows)
    if saved is None or saved.learns:
        batch_bytes = batch_size * subset.size * dtype.itemsize
        sizes = (d, k, n_rows, n_classes, batch_bytes, batch_size)
        check_memory(kernel, *sizes, ladder=ladder is not None)
    tangent = TangentNetwork(loaded.net, subset, synthetic[:2], compiled)
    readout = draw_readout(seed, n_rows, features.shape[1]) if saved is None else saved.readout
    model = LinearizedModel(
        loaded,
        tangent,
        Projection(subset.size, k, seed, dtype),
        readout.to(dtype=dtype, device=device),
        n_classes,
        kernel,
        precision,
        1.0,
        1.0,
        0.0,
        batch_size,
        n_features,
        {
            "backbone": backbone if isinstance(backbone, str) else None,
            "trainable": [*sides, *entries],
            "n_prompts": n_prompts,
            "pretrained": pretrained,
            "image_size": loaded.spec.size,
            "origin": origin(loaded, backbone, pretrained),
        },
        None if saved is None else saved.moved,
        ladder,
    )
    if saved is None:
        if ladder is not None:
            ladder.calibrate(synthetic.split(batch_size))
        _check_precision(model, synthetic[:_PRECISION_ROWS])
        units = _measure(model, synthetic)
    else:
        units = saved.units
    model.scale_h, model.scale_J, model.position_gap = units
    return model


@torch.no_grad()
def _first_pass(backbone: Backbone, batch: Tensor) -> Tensor:
    """Return the features of a batch; raise ValueError where a network does not take what X holds."""
    try:
        features = backbone.net(batch)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        given = "vectors" if batch.ndim == 2 else "pictures"
        raise ValueError(
            f"Expected a backbone that takes {given} as X holds them, batches of shape "
            f"(n, {', '.join(map(str, batch.shape[1:]))}); {backbone.name} fails on one: {error}. Pass "
            "pictures as (n, H, W) or (n, H, W, 3) and vectors as (n, n_features), or another backbone."
        ) from error
    if not isinstance(features, Tensor):
        raise SubsetError(
            f"Expected the backbone to return a tensor of features, got {type(features).__name__}. Wrap "
            "it in a module that returns one."
        )
    return features


def linearize_at(model: LinearizedModel, moved: Tensor, readout: Tensor, seed: int) -> LinearizedModel:
    """Return the model that is linearised at a fine-tuned anchor.

    Parameters
    ----------
    model : LinearizedModel
        At the pretrained anchor; not changed.

    moved : Tensor of shape (k,)
        The anchor is theta_0 + Q moved.

    readout : Tensor of shape (C, d)
        V, the fine-tuned readout on the features.

    seed : int

    Returns
    -------
    tuned : LinearizedModel
        In units of the anchor, or of `model` where its Jacobians are larger.
    """
    net = model.network_at(model.projection.expand(moved))
    backbone = replace(model.backbone, net=net)
    dtype, device = model.readout.dtype, model.readout.device
    synthetic = backbone.synthetic(_SYNTHETIC_ROWS, seed, model.n_features, dtype).to(device)
    tuned = replace(
        model,
        backbone=backbone,
        tangent=TangentNetwork(net, model.tangent.subset, synthetic[:2], model.tangent.compiled),
        readout=readout,
        moved=moved,
    )
    tuned.scale_h, tuned.scale_J, tuned.position_gap = _measure(tuned, synthetic)
    # a readout that has hardly learned has small Jacobians: magnified, they would ask for
    # displacements that the network does not follow
    tuned.scale_J = max(tuned.scale_J, model.scale_J)
    return tuned


def draw_readout(seed: int, n_rows: int, d: int) -> Tensor:
    """Return V, float64 of shape (n_rows, d), N(0, 1/d); row c depends on the seed and c only."""
    V = torch.empty(n_rows, d, dtype=torch.float64)
    for c, row in enumerate(V):
        row.normal_(generator=generator(seed, "readout", c))
    return V / d**0.5


@kept_heap()
def _measure(model: LinearizedModel, synthetic: Tensor) -> tuple[float, float, float]:
    """Return the scales of features and Jacobians, and the effect of a row's place."""
    energies, first = [], None
    for batch in synthetic.split(model.batch_size):
        h, J = model.passes(batch)
        first = first or (h, J)
        energies.append((h.square().sum(1) + 1, J.square().sum((1, 2)) / max(1, J.shape[1])))
    mean_h, mean_J = (float(torch.cat(e).double().mean()) for e in zip(*energies, strict=True))
    if not math.isfinite(mean_h + mean_J):
        raise JacobianError(
            f"Features or Jacobians of {model.backbone.name} are NaN or infinite on synthetic "
            "inputs. Check its weights, or use precision='float64'."
        )
    assert first is not None
    elsewhere = model.passes(synthetic[: model.batch_size].roll(1, 0))
    moved = [part.roll(-1, 0) for part in elsewhere]
    gap = max(relative_gap(new, old) for new, old in zip(moved, first, strict=True))
    scale_h = 1.0 if model.ladder is not None else _power_of_two(mean_h)
    return scale_h, _power_of_two(mean_J), gap if gap > 1e-12 else 0.0


def _check_precision(model: LinearizedModel, synthetic: Tensor) -> None:
    """Raise PrecisionError where bfloat16 changes features or Jacobians by more than a few percent."""
    if model.precision != "bfloat16":
        return
    parts = zip(*(model.passes(synthetic, full_precision=full) for full in (False, True)), strict=True)
    error = max(relative_gap(coarse, fine) for coarse, fine in parts)
    if not error < _LARGEST_ERROR:
        raise PrecisionError(
            f'Expected precision="float32" for backbone {model.backbone.name!r}, got "bfloat16", in '
            f"which its features or Jacobians are off by {error:.0%} on synthetic inputs (at most "
            f"{_LARGEST_ERROR:.0%} are accepted). It is for transformers."
        )


def _power_of_two(energy: float) -> float:
    """Return the power of two nearest to the square root of an energy; 1 for no energy."""
    return 2.0 ** round(math.log2(energy) / 2) if energy > 0 else 1.0
