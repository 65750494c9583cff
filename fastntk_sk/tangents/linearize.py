"""From a backbone to the model that is linear in a subset of its parameters, in measured units."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..backbones.loading import Backbone, load_backbone, origin
from ..exceptions import JacobianError, PrecisionError, SubsetError
from ..randomness import generator
from ..settings import Settings
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


def linearize(backbone: Any, X: Any, settings: Settings, saved: Saved | None = None) -> LinearizedModel:
    """Load the backbone, choose the subset and measure the energy units.

    Parameters
    ----------
    backbone : str, nn.Module or callable

    X : array-like
        The first picture gives the size for a module that does not say one.

    settings : Settings
        As the user gave them: `trainable` and `n_components` may be "auto".

    saved : Saved, default=None
        Given where a model is loaded.

    Returns
    -------
    model : LinearizedModel
        Its settings are resolved.

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
    seed, device, n_classes = settings.seed, settings.device, settings.n_classes
    batch_size, kernel = settings.batch_size, settings.kernel
    dtype = working_dtype(settings.precision)
    loaded = load_backbone(
        backbone,
        pretrained=settings.pretrained,
        image_size=settings.image_size,
        X=X,
        n_features=settings.n_features,
        seed=seed,
    )
    sides, entries = split_ladder(resolve(settings.trainable, loaded.net, settings.anchor))
    prompts = {"prompt", "prompt-deep"} & set(entries)
    if prompts:
        if saved is not None:
            saved.check_prompts(settings.n_prompts, prompt_width(loaded.net))
        insert_prompts(
            loaded.net,
            settings.n_prompts,
            deep="prompt-deep" in prompts,
            generator=generator(seed, "prompts"),
        )
    loaded.net.to(dtype=dtype, device=device)
    subset = select(loaded.net, entries)
    if saved is not None:
        saved.install(loaded, subset)
    n_synthetic = _SYNTHETIC_ROWS if saved is None else 2
    synthetic = loaded.synthetic(n_synthetic, seed, settings.n_features, dtype).to(device)
    features = _first_pass(loaded, synthetic[:2])
    alone = _first_pass(loaded, synthetic[:1])
    if features.ndim != 2 or alone.shape != (1, features.shape[1]):
        raise SubsetError(
            "Expected the backbone to return features of shape (n, d), got "
            f"{tuple(features.shape)} of two rows and {tuple(alone.shape)} of one. Wrap it in a module "
            "that pools them, and leaves the rows."
        )
    d, n_rows = features.shape[1], n_classes if kernel == "full" else settings.n_directions
    if not subset.size and settings.anchor == "pretrained":
        n_rows = 0  # nothing is linearised: V would read no tangents
    if saved is not None:
        saved.check_directions(n_rows, d, dtype)
    try:
        ladder = Ladder(loaded.net, sides, synthetic[:2]) if sides else None
    except SubsetError:
        if settings.trainable != ("auto",):
            raise
        ladder, sides = None, ()
    if ladder is not None:
        if saved is None:
            asked = settings.n_components
            width = AUTO_COMPONENTS if asked == "auto" else asked
            ladder.draw_sketch(
                sum(ladder.widths) * len(ladder.sides) if width is None else int(width), seed
            )
        else:
            ladder.install(saved.ladder)
        d = ladder.width
    k = choose_components(settings.n_components, subset.size, kernel, d, n_rows)
    if saved is None or saved.learns:
        batch_bytes = batch_size * subset.size * dtype.itemsize
        sizes = (d, k, n_rows, n_classes, batch_bytes, batch_size)
        check_memory(kernel, *sizes, ladder=ladder is not None)
    V = draw_directions(seed, n_rows, features.shape[1]) if saved is None else saved.directions
    model = LinearizedModel(
        loaded,
        TangentNetwork(loaded.net, subset, synthetic[:2]),
        Projection(subset.size, k, seed, dtype),
        V.to(dtype=dtype, device=device),
        replace(settings, trainable=(*sides, *entries), n_components=k, image_size=loaded.spec.size),
        origin(loaded, backbone, settings.pretrained),
        *((1.0, 1.0, 0.0) if saved is None else saved.units),
        None if saved is None else saved.moved,
        ladder,
    )
    if saved is None:
        if ladder is not None:
            ladder.calibrate(synthetic.split(batch_size))
        _check_precision(model, synthetic[:_PRECISION_ROWS])
        model.scale_h, model.scale_J, model.position_gap = _measure(model, synthetic)
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


def linearize_at(model: LinearizedModel, moved: Tensor, directions: Tensor) -> LinearizedModel:
    """Return the model that is linearised at a fine-tuned anchor.

    Parameters
    ----------
    model : LinearizedModel
        At the pretrained anchor; not changed.

    moved : Tensor of shape (k,)
        The anchor is theta_0 + Q moved.

    directions : Tensor of shape (C, d)
        V, the fine-tuned readout on the features.

    Returns
    -------
    tuned : LinearizedModel
        In units of the anchor, or of `model` where its Jacobians are larger.
    """
    net = model.network_at(model.projection.expand(moved))
    backbone = replace(model.backbone, net=net)
    dtype, device = model.directions.dtype, model.directions.device
    settings = model.settings
    synthetic = backbone.synthetic(_SYNTHETIC_ROWS, settings.seed, settings.n_features, dtype).to(device)
    tuned = replace(
        model,
        backbone=backbone,
        tangent=TangentNetwork(net, model.tangent.subset, synthetic[:2]),
        directions=directions,
        moved=moved,
    )
    tuned.scale_h, tuned.scale_J, tuned.position_gap = _measure(tuned, synthetic)
    # a readout that has hardly learned has small Jacobians: magnified, they would ask for
    # displacements that the network does not follow
    tuned.scale_J = max(tuned.scale_J, model.scale_J)
    return tuned


def draw_directions(seed: int, n_rows: int, d: int) -> Tensor:
    """Return V, float64 of shape (n_rows, d), N(0, 1/d); row c depends on the seed and c only."""
    V = torch.empty(n_rows, d, dtype=torch.float64)
    for c, row in enumerate(V):
        row.normal_(generator=generator(seed, "directions", c))
    return V / d**0.5


@kept_heap()
def _measure(model: LinearizedModel, synthetic: Tensor) -> tuple[float, float, float]:
    """Return the scales of features and Jacobians, and the effect of a row's place."""
    energies, first = [], None
    for batch in synthetic.split(model.settings.batch_size):
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
    elsewhere = model.passes(synthetic[: model.settings.batch_size].roll(1, 0))
    moved = [part.roll(-1, 0) for part in elsewhere]
    gap = max(relative_gap(new, old) for new, old in zip(moved, first, strict=True))
    scale_h = 1.0 if model.ladder is not None else _power_of_two(mean_h)
    return scale_h, _power_of_two(mean_J), gap if gap > 1e-12 else 0.0


def _check_precision(model: LinearizedModel, synthetic: Tensor) -> None:
    """Raise PrecisionError where bfloat16 changes features or Jacobians by more than a few percent."""
    if model.settings.precision != "bfloat16":
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
