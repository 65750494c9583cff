"""Anchors that the rows have trained, and how far the network is from its linearisation there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.inputs import Rows
from ..distributed import Ranks
from ..tangents.linearize import linearize_at
from ..tangents.model import LinearizedModel, Parameters, relative_gap
from .finetuning import FineTuned, SubspaceNetwork, finetune

_LINEARITY_ROWS = 200


def tune(
    model: LinearizedModel,
    rows: Rows,
    labels: np.ndarray,
    weights: np.ndarray,
    *,
    rescale: bool,
    ranks: Ranks,
    **training: Any,
) -> tuple[LinearizedModel, FineTuned]:
    """Fine-tune, and return the model that is linearised where SGD ended.

    With `rescale` the scale of the targets becomes the mean margin on the rows, or 1 where there is
    less. `training` are further arguments of `finetune`. Every rank trains on all rows and takes the
    result of rank 0.
    """
    settings = model.settings
    start = model.directions.new_zeros(settings.n_classes, model.d + 1)
    tuned = finetune(
        SubspaceNetwork(
            model.backbone.net,
            model.tangent.subset,
            model.projection,
            start,
            augment=settings.augment,
        ),
        rows,
        labels,
        weights,
        device=settings.device,
        seed=settings.seed,
        **training,
    )
    ranks.take_first([tuned.z, tuned.W])
    tuned = replace(tuned, history=ranks.agree(tuned.history))
    learned = rows, labels, weights
    return settle(model, tuned.W, *learned, moved=tuned.z, rescale=rescale, ranks=ranks), tuned


def settle(
    model: LinearizedModel,
    W: Tensor,
    rows: Rows,
    labels: np.ndarray,
    weights: np.ndarray,
    *,
    moved: Tensor | None = None,
    rescale: bool,
    ranks: Ranks,
) -> LinearizedModel:
    """Return the model that is linearised where training ended: at theta_0 + Q moved, with a readout W.

    Without `moved` that is at the values of the network itself, which its owner has trained. `rescale`
    is that of `tune`.
    """
    moved = W.new_zeros(model.projection.k) if moved is None else moved
    model = linearize_at(model, moved, W[:, :-1].to(model.directions))
    if rescale:
        trained = Parameters(W, W.new_zeros(model.projection.p))
        logits = model.scores(trained, rows, predict_with="network")
        scale = max(1.0, ranks.agree(_mean_margin(logits, labels, weights)))
        model.settings = replace(model.settings, target_scale=scale)
    return model


def _mean_margin(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean over the rows of the true class's logit less the mean of the others'."""
    true = logits[np.arange(len(labels)), labels]
    others = (logits.sum(1) - true) / (logits.shape[1] - 1)
    return float(np.average(true - others, weights=weights))


def linearity(model: LinearizedModel, parameters: Parameters, rows: Rows) -> float:
    """Return the relative difference between the network's and the linearised model's centred scores.

    It is measured on at most 200 of the rows.
    """
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), _LINEARITY_ROWS)).astype(int)
    network, linear = (
        torch.from_numpy(model.scores(parameters, (rows[i] for i in chosen), predict_with=how))
        for how in ("network", "linear")
    )
    return relative_gap(*(scores - scores.mean(1, keepdim=True) for scores in (network, linear)))
