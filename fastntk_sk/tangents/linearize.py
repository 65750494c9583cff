"""From a backbone to the model that is linear in a subset of its parameters, in measured units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.loading import Backbone, load_backbone, origin
from ..backbones.modules import check_finite
from ..backbones.outputs import activations, settle
from ..exceptions import JacobianError, PrecisionError, StateMismatchError, SubsetError
from ..randomness import generator
from ..settings import Settings
from ..sums.memory import AUTO_COMPONENTS, check_memory, choose_batch_size, choose_components
from .jacobians import TangentNetwork
from .ladder import Ladder
from .lora import LORA_A, insert_lora, lora_layers
from .model import LinearizedModel, own_names, relative_gap, working_dtype
from .projection import Projection
from .subsets import Subset, insert_prompts, prompt_width, resolve, select, split_ladder
from .threads import exact_kernels, passing

_SYNTHETIC_ROWS = 100
_PRECISION_ROWS = 8
_LARGEST_ERROR = 0.05  # of Jacobians in bfloat16: transformers have 1-2 %, batch norms 20-40 %
LARGEST_CHANGE = 0.1  # of predictions: 0.05 of lite0's ladder, and its accuracy was the same
_TARGETS, _RIDGE = 10, 0.1  # what is learned to see that change


@dataclass(frozen=True)
class Saved:
    """Parts of a `LinearizedModel` that come from a file, instead of being drawn or measured.

    `tensors` are those of `own_names`, `units` are scale_h, scale_J and position_gap, `ladder` is what
    `Ladder.tensors` returns. Without `learns` no statistics will be kept, which need memory.
    """

    tensors: dict[str, Tensor]
    directions: Tensor
    units: tuple[float, float, float]
    moved: Tensor | None = None
    learns: bool = True
    ladder: dict[str, Tensor] = field(default_factory=dict)

    def check_mlp(self, n_features: int | None) -> None:
        """Raise StateMismatchError unless the first weights of an "mlp" of this size are there."""
        width = len(load_backbone("mlp").net.get_parameter("1.weight"))
        first = self.tensors.get("1.weight")
        shape = None if first is None else tuple(first.shape)
        _check_saved(f'the weights of an "mlp" on {n_features} features', (width, n_features), shape)

    def check_prompts(self, n_prompts: int, width: int) -> None:
        """Raise StateMismatchError unless the prompts have this number and this width."""
        shapes = {tuple(t.shape) for name, t in self.tensors.items() if name.endswith(".prompt")}
        _check_saved(f"{n_prompts} prompt tokens of width {width}", {(n_prompts, width)}, shapes)

    def check_lora(self, net: nn.Module, layers: Sequence[str], rank: int) -> None:
        """Raise StateMismatchError unless there is an A of this rank for each of these layers."""
        widths = {name: net.get_parameter(f"{name}.weight").shape[1:] for name in layers}
        expected = {name + LORA_A: (rank, *width) for name, width in widths.items()}
        got = {name: tuple(t.shape) for name, t in self.tensors.items() if name.endswith(LORA_A)}
        _check_saved("A of LoRA layers of shape", expected, got)

    def install(self, backbone: Backbone, subset: Subset) -> None:
        """Put the tensors into a backbone, or raise StateMismatchError where they are not its own."""
        names = own_names(backbone, () if self.moved is None else subset.names)
        present = backbone.net.state_dict()
        expected = {(name, present[name].shape, present[name].dtype) for name in names}
        got = {(name, tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()}
        differing = sorted({name for name, *_ in expected ^ got})
        _check_saved(f"tensors as backbone {backbone.name!r} has them", [], differing)
        backbone.net.load_state_dict(self.tensors, strict=False)


def _check_saved(what: str, expected: object, got: object) -> None:
    if got != expected:
        raise StateMismatchError(
            f"Expected {what}, got {got!s:.300} in what was saved. Load with the backbone that was "
            "saved: backbone=..."
        )


def linearize(backbone: Any, settings: Settings, saved: Saved | None = None) -> LinearizedModel:
    """Load the backbone, choose the subset and measure the energy units; or take those that were saved.

    `trainable`, `n_components` and `batch_size` of the settings may be "auto"; those of the model are
    resolved. Memory is checked before the statistics are allocated.
    """
    dtype = working_dtype(settings.precision)
    loaded = backbone
    if not isinstance(loaded, Backbone):
        loaded = load_backbone(
            backbone,
            pretrained=settings.pretrained,
            image_size=settings.image_size,
            n_features=settings.n_features,
            seed=settings.seed,
        )
    sides, entries = split_ladder(resolve(settings.trainable, loaded.net, settings.anchor))
    if {"prompt", "prompt-deep"} & set(entries):
        if saved is not None:
            saved.check_prompts(settings.n_prompts, prompt_width(loaded.net))
        draws = generator(settings.seed, "prompts")
        deep = "prompt-deep" in entries
        insert_prompts(loaded.net, settings.n_prompts, deep=deep, generator=draws)
    loaded.net.to(dtype=dtype, device=settings.device)
    check_finite(loaded.net, loaded.name)
    probe = loaded.probe(settings.seed, settings.n_features, dtype, settings.device)
    n_features = settle(loaded.net, probe, loaded.name)
    ladder = _ladder(loaded.net, sides, probe, settings, saved)
    if "lora" in entries:
        layers = lora_layers(loaded.net, probe)
        if saved is not None:
            saved.check_lora(loaded.net, layers, settings.lora_rank)
        draws = generator(settings.seed, "lora")
        insert_lora(loaded.net, layers, settings.lora_rank, draws)
    subset = select(loaded.net, entries)
    settings = replace(settings, batch_size=_batch_size(loaded.net, probe, subset.size, settings))
    if saved is not None:
        saved.install(loaded, subset)
    if not subset.size and settings.anchor == "pretrained":
        n_rows = 0  # nothing is linearised: V would read no tangents
    else:
        n_rows = settings.n_classes if settings.kernel == "full" else settings.n_directions
    if saved is None:
        V = draw_directions(settings.seed, n_rows, n_features).to(dtype)
    else:
        V, expected = saved.directions, (n_rows, n_features, dtype)
        _check_saved(f"probe directions of shape and dtype {expected}", expected, (*V.shape, V.dtype))
    d = n_features if ladder is None else ladder.width
    k = choose_components(settings.n_components, subset.size, settings.kernel, d, n_rows)
    if saved is None or saved.learns:
        batch_bytes = settings.batch_size * subset.size * dtype.itemsize
        sizes = (d, k, n_rows, settings.n_classes, batch_bytes, settings.batch_size)
        check_memory(settings.kernel, *sizes, ladder=ladder is not None)
    trained = (*(sides if ladder is not None else ()), *entries)
    model = LinearizedModel(
        loaded,
        TangentNetwork(loaded.net, subset, probe),
        Projection(subset.size, k, settings.seed, dtype),
        V.to(settings.device),
        replace(settings, trainable=trained, n_components=k, image_size=loaded.spec.size),
        origin(loaded, backbone, settings.pretrained),
        *((1.0, 1.0, 0.0) if saved is None else saved.units),
        None if saved is None else saved.moved,
        ladder,
    )
    if saved is None:
        if ladder is not None:
            with exact_kernels(model.device):
                ladder.calibrate(model.synthetic(_SYNTHETIC_ROWS).split(settings.batch_size))
        _check_precision(model)
        _measure(model)
    return model


@torch.no_grad()
def _batch_size(net: nn.Module, probe: Tensor, n_trained: int, settings: Settings) -> int:
    """Return the size of batches; "auto" chooses it by the activations in one pass of the probe."""
    asked: Any = settings.batch_size
    if asked != "auto":
        return int(asked)
    with activations(net) as numbers:
        net(probe)
    of_row = [number // len(probe) for number in numbers]
    return choose_batch_size(of_row, n_trained, probe.itemsize, settings.device)


def _ladder(
    net: nn.Module, sides: Sequence[str], probe: Tensor, settings: Settings, saved: Saved | None
) -> Ladder | None:
    """Return the ladder with its sketch, drawn or saved; None where "auto" finds no rungs."""
    if not sides:
        return None
    try:
        ladder = Ladder(net, sides, probe)
    except SubsetError:
        if settings.trainable != ("auto",):
            raise
        return None
    if saved is not None:
        ladder.install(saved.ladder)
        return ladder
    asked = settings.n_components
    width = AUTO_COMPONENTS if asked == "auto" else asked
    everything = sum(ladder.widths) * len(ladder.sides)
    ladder.draw_sketch(everything if width is None else int(width), settings.seed)
    return ladder


def linearize_at(model: LinearizedModel, moved: Tensor, directions: Tensor) -> LinearizedModel:
    """Return the model that is linearised at a trained anchor, theta_0 + Q moved.

    `model` is at the network's own values theta_0, and `directions` is V, the trained readout on the
    features.
    The units are those of the anchor, or of `model` where its Jacobians are larger.
    """
    net = model.displaced_copy(model.projection.expand(moved))
    tuned = replace(
        model,
        backbone=replace(model.backbone, net=net),
        tangent=TangentNetwork(net, model.tangent.subset, model.synthetic(2)),
        directions=directions,
        moved=moved,
    )
    _measure(tuned)
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


def _measure(model: LinearizedModel) -> None:
    """Set the scales of features and Jacobians, and the effect of a row's place and of other rows."""
    size = model.settings.batch_size
    first, *others = model.synthetic(_SYNTHETIC_ROWS).split(size)
    with passing(model.device) as call:
        passes = [call(model.passes, batch) for batch in (first, *others)]
        elsewhere = call(model.passes, first.roll(1, 0))
        others = -first
        others[0] = first[0]
        among_others = call(model.passes, others)
    energies = [(h.square().sum(1) + 1, J.square().sum((1, 2)) / max(1, J.shape[1])) for h, J in passes]
    mean_h, mean_J = (float(torch.cat(e).cpu().double().mean()) for e in zip(*energies, strict=True))
    if not math.isfinite(mean_h + mean_J):
        raise JacobianError(
            f"Features or Jacobians of {model.backbone.name} are NaN or infinite on synthetic "
            "inputs. Check its weights, or use precision='float64'."
        )
    gaps = [relative_gap(new.roll(-1, 0), old) for new, old in zip(elsewhere, passes[0], strict=True)]
    gaps += [relative_gap(new[0], old[0]) for new, old in zip(among_others, passes[0], strict=True)]
    model.scale_h = 1.0 if model.ladder is not None else _power_of_two(mean_h)
    model.scale_J = _power_of_two(mean_J)
    model.position_gap = max(gaps) if max(gaps) > 1e-12 else 0.0


def _check_precision(model: LinearizedModel) -> None:
    """Raise PrecisionError where learning in bfloat16 changes Jacobians, or predictions, by too much."""
    if model.settings.precision != "bfloat16":
        return
    if model.projection.k:
        batch = model.synthetic(_PRECISION_ROWS)
        parts = zip(*(model.passes(batch, full_precision=full) for full in (False, True)), strict=True)
        what, most = "features or Jacobians", _LARGEST_ERROR
        error = max(relative_gap(coarse, fine) for coarse, fine in parts)
    else:
        what, most, error = "predictions", LARGEST_CHANGE, change_of_predictions(model)
    if not error < most:
        raise PrecisionError(
            f'Expected precision="float32" for backbone {model.backbone.name!r}, got "bfloat16", in '
            f"which its {what} are off by {error:.0%} on synthetic inputs (at most {most:.0%} are "
            "accepted)."
        )


def change_of_predictions(model: LinearizedModel) -> float:
    """Return the relative change of scores if a ladder learns in bfloat16.

    It learns random targets of synthetic rows, and scores others in full precision, as the estimator
    does. 0 for a model in full precision.
    """
    batches = model.synthetic(_SYNTHETIC_ROWS).split(model.settings.batch_size)
    coarse, fine = (
        torch.cat([model.passes(batch, full_precision=full)[0] for batch in batches]).cpu().double()
        for full in (False, True)
    )
    n, unit = len(fine) // 2, fine.square().sum(1).mean().sqrt()  # rows have energy 1 in the sums
    targets = draw_directions(model.settings.seed, n, _TARGETS)

    def scores(learned: Tensor) -> Tensor:
        gram = learned @ learned.T / unit**2 + 1  # with the constant
        gram.diagonal().add_(_RIDGE)
        return (fine[n:] @ learned.T / unit**2 + 1) @ torch.linalg.solve(gram, targets)

    return relative_gap(scores(coarse[:n]), scores(fine[:n]))


def _power_of_two(energy: float) -> float:
    """Return the power of two nearest to the square root of an energy; 1 for no energy."""
    return 2.0 ** round(math.log2(energy) / 2) if energy > 0 else 1.0
