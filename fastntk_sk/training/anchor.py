"""The fine-tuned anchor: where SGD ends, and how far the network is from its linearisation there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

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

    With `rescale` the scale of the targets becomes the mean margin that SGD left, or 1 where there is
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
    rest = {"logit_scale": tuned.logit_scale, "history": tuned.history}
    tuned = replace(tuned, **ranks.agree(rest))
    if rescale:
        settings = replace(settings, target_scale=max(1.0, tuned.logit_scale))
    V = tuned.W[:, :-1].to(model.directions)
    return linearize_at(replace(model, settings=settings), tuned.z, V), tuned


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
