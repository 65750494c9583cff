"""The first state of an estimator: checked rows, a model, perhaps fine-tuning, and one pass."""

from __future__ import annotations

import os
import secrets
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import unique_labels

from .backbones.inputs import Rows
from .backbones.loading import takes_vectors
from .distributed import Group
from .exceptions import LinearityWarning, StateMismatchError, SubsetError
from .publishing import files
from .settings import Settings
from .state import Progress, State
from .store.checkpoints import Checkpoint, Partial
from .store.ledger import KEY_BYTES, Ledger, Segment
from .sums.memory import require
from .sums.ridge import at_least, number
from .sums.statistics import Statistics
from .tangents.linearize import linearize, linearize_at
from .tangents.model import Parameters, relative_gap
from .tangents.subsets import split_ladder
from .training.finetuning import FineTuned, SubspaceNetwork, finetune
from .validation import check_parameters, check_training_rows, draw_seed, encode_labels

_LINEARITY_ROWS = 200
_NOT_FOLLOWED = 0.5  # at 0.5 the network told digits apart worse by 4 points, at 0.7 a ViT's by 20


@dataclass(frozen=True)
class Prepared:
    """A fit before its first pass.

    Parameters
    ----------
    state : State
        At the pretrained anchor, without a row.

    rows : Rows

    labels : int64 ndarray of shape (n,)

    weights : float64 ndarray of shape (n,)

    ids : list or None

    classes : ndarray of shape (n_classes,)
    """

    state: State
    rows: Rows
    labels: np.ndarray
    weights: np.ndarray
    ids: list[object] | None
    classes: np.ndarray


def prepare(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    classes: Any,
    sample_weight: Any,
    sample_ids: Any,
    found: Partial | None = None,
) -> Prepared:
    """Check everything and build the model.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Gets `n_features_in_` and `feature_names_in_` of vectors; nothing else changes.

    X, y, classes, sample_weight, sample_ids
        As in :meth:`FastNTKClassifier.partial_fit`.

    found : Partial, default=None
        What an interrupted fit left.

    Returns
    -------
    prepared : Prepared
    """
    check_parameters(estimator)
    get = estimator.get_params(deep=False).__getitem__
    vectors = takes_vectors(get("backbone"), X)
    X, y, weights, ids = check_training_rows(
        estimator,
        X,
        y,
        sample_weight,
        sample_ids,
        alpha=at_least(get("alpha")),
        vectors=vectors,
        reset=True,
    )
    names, labels = _check_classes(y, classes)
    seed, key, chain = _drawn(found, get("random_state"))
    device = get("device")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = get("precision")
    if precision == "auto":
        precision = "float64" if isinstance(get("backbone"), str) and vectors else "float32"
    predict_with = get("predict_with")
    sides, _ = split_ladder(get("trainable"))
    if sides and get("anchor") == "finetuned":
        raise SubsetError(
            'Expected anchor="pretrained" with a ladder, which reads the frozen network, got '
            'anchor="finetuned". Choose trainable="norm" or "prompt" to fine-tune.'
        )
    if predict_with == "auto":
        predict_with = "network" if get("anchor") == "finetuned" else "linear"
    settings = Settings(
        seed=seed,
        n_classes=len(names),
        n_features=X.shape[1] if vectors else None,
        backbone=get("backbone") if isinstance(get("backbone"), str) else None,
        trainable=get("trainable"),
        anchor=get("anchor"),
        kernel=get("kernel"),
        n_directions=get("n_directions"),
        n_components=get("n_components"),
        n_prompts=get("n_prompts"),
        image_size=get("image_size"),
        pretrained=get("pretrained"),
        batch_size=get("batch_size"),
        precision=precision,
        device=device,
        alpha=number(get("alpha")),
        tangent_scale=float(get("tangent_scale")),
        target_scale=1.0 if get("target_scale") == "auto" else float(get("target_scale")),
        predict_with=predict_with,
    )
    model = linearize(get("backbone"), X, settings)
    if model.ladder is not None and predict_with == "network":
        raise ValueError(
            'Expected predict_with="linear" or "auto" with a ladder, whose rungs read the network '
            'at the pretrained anchor, got "network". Choose trainable="norm" to displace weights.'
        )
    rows = Rows(X, model.backbone.spec, get("num_workers"))
    state = State.empty(model, Ledger([Segment(key)]), chain)
    return Prepared(state, rows, labels, weights, ids, names)


def first_state(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    classes: Any,
    sample_weight: Any,
    sample_ids: Any,
    progress: Progress,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> tuple[State, np.ndarray]:
    """Prepare a fit, move the anchor if that is asked for, and learn the rows.

    Parameters
    ----------
    estimator, X, y, classes, sample_weight, sample_ids
        As in `prepare`.

    progress : callable

    checkpoint_dir : str or path-like, default=None

    Returns
    -------
    state : State

    classes : ndarray of shape (n_classes,)
    """
    group = Group()
    if not group.alone:
        plain = (str, int, float, type(None))
        params = estimator.get_params(deep=False).items()
        shared = sorted((name, value) for name, value in params if isinstance(value, plain))
        group.check_same(repr((np.asarray(y).shape, checkpoint_dir is None, shared)).encode())
    checkpoint = None if checkpoint_dir is None else Checkpoint(checkpoint_dir, group.rank, group.size)
    found = None if checkpoint is None else checkpoint.found
    prepared = prepare(estimator, X, y, classes, sample_weight, sample_ids, found)
    state, rows = prepared.state, prepared.rows
    if checkpoint is not None:
        sums = Statistics.n_bytes(*state.model.sizes, state.settings.n_classes)
        require(
            state.model.memory_needed() + 2 * sums,
            "The statistics, and a copy of them that is written to the checkpoint, need",
            "Take fewer components, or go without checkpoint_dir.",
        )
    if state.settings.is_finetuned:
        state = _at_tuned_anchor(estimator, prepared, group)
    state = state.learn(rows, prepared.labels, prepared.weights, prepared.ids, progress, checkpoint)
    if state.settings.is_finetuned:
        state = replace(state, linearity=_linearity(state, rows))
        if state.settings.predict_with == "network" and state.linearity > _NOT_FOLLOWED:
            warnings.warn(
                f"The displaced network's scores are {state.linearity:.0%} away from those of the "
                "linearised model (linearity_), for which alone deletion is exact. Predict with the "
                "latter (predict_with='linear'), or train for fewer epochs.",
                LinearityWarning,
                stacklevel=4,
            )
    if checkpoint is not None:
        group.wait()  # until no rank needs its own any more
        checkpoint.remove()
    return state, prepared.classes


def with_classes(
    state: State, known: np.ndarray, y: np.ndarray, classes: Any
) -> tuple[State, np.ndarray]:
    """Return a state that also knows the classes of new rows, and all class labels in order.

    Parameters
    ----------
    state : State

    known : ndarray of shape (n_classes,)

    y : ndarray of shape (n,)
        Class labels of the new rows.

    classes : array-like or None
        All class labels, if the caller names them.

    Returns
    -------
    state : State
        Without a row of the new classes; not yet solved again.

    names : ndarray

    Raises
    ------
    ValueError
        If `classes` lacks a known one, or if there are new ones, and every class has tangents of its
        own or SGD has tuned the anchor for the known ones.
    """
    names = unique_labels(known, y, *([] if classes is None else [classes]))
    missing = [] if classes is None else np.setdiff1d(names, unique_labels(classes)).tolist()
    if missing:
        raise ValueError(
            f"Expected classes to name every class of the rows learned and passed, got a list without "
            f"{missing}. Leave classes out, or call fit to start with other classes."
        )
    if len(names) == len(known):
        return state, known
    new = np.setdiff1d(names, known).tolist()
    if state.settings.is_finetuned:
        raise ValueError(
            f"Expected labels among classes_ = {known.tolist()}, got {new}: SGD tuned the anchor for "
            'those classes. Call fit again with all rows, or take anchor="pretrained".'
        )
    if state.model.sizes[1]:
        raise ValueError(
            f"Expected labels among classes_ = {known.tolist()}, got {new}: every class has tangents of "
            "its own, which learned rows lack for a new one. Name all classes in the first call, "
            'partial_fit(X, y, classes=...), or fit with trainable="ladder" or kernel="pseudo", which '
            "take new classes at any time."
        )
    places = np.searchsorted(names, known).tolist()
    class_rows = np.zeros(len(names), dtype=state.class_rows.dtype)
    class_rows[places] = state.class_rows
    grown = replace(
        state,
        model=replace(state.model, settings=replace(state.settings, n_classes=len(names))),
        statistics=state.statistics.with_classes(places, len(names)),
        ledger=state.ledger.relabelled(places),
        class_rows=class_rows,
    )
    return grown, names


def _at_tuned_anchor(estimator: BaseEstimator, prepared: Prepared, group: Group) -> State:
    """Return the state without a row where SGD ended."""
    get = estimator.get_params(deep=False).__getitem__
    state, model = prepared.state, prepared.state.model
    settings = state.settings
    tuned = finetune(
        SubspaceNetwork(
            model.backbone.net,
            model.tangent.subset,
            model.projection,
            model.directions.new_zeros(settings.n_classes, model.d + 1),
        ),
        prepared.rows,
        prepared.labels,
        prepared.weights,
        max_epochs=get("max_epochs"),
        learning_rate=float(get("learning_rate")),
        params=get("finetune_params"),
        device=settings.device,
        seed=settings.seed,
        verbose=get("verbose"),
    )
    tuned = _of_first_rank(group, tuned)
    if get("target_scale") == "auto":
        # logits that SGD left without any margin still need targets to tell the classes apart
        settings = replace(settings, target_scale=max(1.0, tuned.logit_scale))
    model = linearize_at(
        replace(model, settings=settings), tuned.z, tuned.W[:, :-1].to(model.directions)
    )
    at_anchor = Parameters(tuned.W, torch.zeros(model.projection.p, dtype=tuned.W.dtype))
    empty = State.empty(model, state.ledger, state.chain)
    return replace(empty, sgd=at_anchor, history=tuned.history)


def _drawn(found: Partial | None, random_state: Any) -> tuple[int, bytes, str]:
    """Return seed, key of the ledger and name of the chain: an interrupted fit's, or rank 0's.

    Whichever rank has a checkpoint, its digests are under that key: all ranks must take it.
    """
    group = Group()
    mine = b"" if found is None else found.seed.to_bytes(8, "little") + found.key
    earlier = set(group.gather(mine)) - {b""}
    if len(earlier) > 1:
        raise StateMismatchError(
            "Expected checkpoints of one fit, got those of several in the ranks' folders. Delete them "
            "to start anew."
        )
    fresh = draw_seed(random_state).to_bytes(8, "little") + secrets.token_bytes(KEY_BYTES)
    drawn = earlier.pop() if earlier else group.first(fresh)
    chain = group.first(secrets.token_hex(8).encode()).decode()
    if isinstance(random_state, (int, np.integer)) and drawn[:8] != fresh[:8]:
        raise StateMismatchError(
            f"The checkpoint is of another fit: expected that of random_state={random_state}, got that "
            "of another seed. Delete the folder to start anew, or pass the earlier random_state."
        )
    return int.from_bytes(drawn[:8], "little"), drawn[8:], chain


def _of_first_rank(group: Group, tuned: FineTuned) -> FineTuned:
    """Return what rank 0 has found: every rank trains, and none waits longer than its own training."""
    if group.alone:
        return tuned
    group.take_first([tuned.z, tuned.W])
    rest = {"logit_scale": tuned.logit_scale, "history": tuned.history}
    return replace(
        tuned, **files.parse_json(group.first(files.canonical(rest)), "The history of rank 0")
    )


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
            state.model.scores(state.parameters, (rows[i] for i in chosen), predict_with=how)
        )
        for how in ("network", "linear")
    )
    centred = (scores - scores.mean(1, keepdim=True) for scores in (network, linear))
    return relative_gap(*centred)
