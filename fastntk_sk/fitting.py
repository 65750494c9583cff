"""The first state of an estimator: checked rows, a model, perhaps fine-tuning, and one pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import unique_labels

from .backbones import takes_vectors
from .finetuning import SubspaceNetwork, finetune
from .linearized import LinearizedModel, Parameters, relative_gap
from .preprocessing import Rows
from .state import Frozen, Progress, State
from .validation import check_parameters, check_training_rows, draw_seed, encode_labels

_LINEARITY_ROWS = 200


def first_state(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    classes: Any,
    sample_weight: Any,
    sample_ids: Any,
    progress: Progress,
) -> tuple[State, np.ndarray]:
    """Check everything, build the model and learn the rows.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Gets `n_features_in_` and `feature_names_in_` of vectors; nothing else changes.

    X, y, classes, sample_weight, sample_ids
        As in :meth:`FastNTKClassifier.partial_fit`.

    progress : callable

    Returns
    -------
    state : State

    classes : ndarray of shape (n_classes,)
    """
    check_parameters(estimator)
    get = estimator.get_params(deep=False).__getitem__
    vectors = takes_vectors(get("backbone"), X)
    X, y, weights, ids = check_training_rows(
        estimator, X, y, sample_weight, sample_ids, vectors=vectors, reset=True
    )
    names, labels = _check_classes(y, classes)
    seed = draw_seed(get("random_state"))
    device = get("device")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = get("precision")
    if precision == "auto":
        precision = "float64" if isinstance(get("backbone"), str) and vectors else "float32"
    tuning = get("anchor") == "finetuned"
    predict_with = get("predict_with")
    if predict_with == "auto":
        predict_with = "network" if tuning else "linear"
    frozen = Frozen(
        seed=seed,
        alpha=float(get("alpha")),
        tangent_scale=float(get("tangent_scale")),
        target_scale=1.0 if get("target_scale") == "auto" else float(get("target_scale")),
        anchor=get("anchor"),
        network=predict_with == "network",
        device=device,
    )
    model = LinearizedModel.build(
        get("backbone"),
        X,
        n_classes=len(names),
        trainable=get("trainable"),
        n_prompts=get("n_prompts"),
        n_components=get("n_components"),
        pretrained=get("pretrained"),
        image_size=get("image_size"),
        batch_size=get("batch_size"),
        n_features=X.shape[1] if vectors else None,
        dtype=getattr(torch, precision),
        device=device,
        seed=seed,
    )
    rows = Rows(X, model.backbone.spec)
    if not tuning:
        return State.empty(model, frozen).learn(rows, labels, weights, ids, progress), names
    tuned = finetune(
        SubspaceNetwork(
            model.backbone.net,
            model.tangent.subset,
            model.projection,
            model.readout.new_zeros(len(names), model.d + 1),
        ),
        rows,
        labels,
        weights,
        max_epochs=get("max_epochs"),
        learning_rate=float(get("learning_rate")),
        params=get("finetune_params"),
        device=device,
        seed=seed,
        verbose=get("verbose"),
    )
    if get("target_scale") == "auto":
        # logits that SGD left without any margin still need targets to tell the classes apart
        frozen = replace(frozen, target_scale=max(1.0, tuned.logit_scale))
    model = model.tuned(tuned.z, tuned.W[:, :-1].to(model.readout), seed)
    at_anchor = Parameters(tuned.W, torch.zeros(model.projection.p, dtype=tuned.W.dtype))
    state = replace(State.empty(model, frozen), sgd=at_anchor, history=tuned.history)
    state = state.learn(rows, labels, weights, ids, progress)
    return replace(state, linearity=_linearity(state, rows)), names


def _check_classes(y: np.ndarray, classes: Any) -> tuple[np.ndarray, np.ndarray]:
    names = np.unique(y) if classes is None else unique_labels(classes)
    if len(names) < 2:
        raise ValueError(
            f"Expected at least 2 classes, got one class: {names.tolist()}. Pass rows of another "
            "class too, or name all classes in partial_fit(X, y, classes=...)."
        )
    labels = encode_labels(y, names)
    if (labels < 0).any():
        raise ValueError(
            f"Expected labels among classes={names.tolist()}, got "
            f"{np.unique(y[labels < 0]).tolist()}. Add them to classes."
        )
    return names, labels


def _linearity(state: State, rows: Rows) -> float:
    """Return how far the network's scores of some learned rows are from the linearised model's."""
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), _LINEARITY_ROWS)).astype(int)
    network, linear = (
        torch.from_numpy(
            state.model.scores(state.parameters, (rows[i] for i in chosen), network=network)
        )
        for network in (True, False)
    )
    centred = (scores - scores.mean(1, keepdim=True) for scores in (network, linear))
    return relative_gap(*centred)
