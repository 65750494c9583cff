"""Checks of parameters and training rows, in scikit-learn's words."""

from __future__ import annotations

import os
import re
import secrets
import unicodedata
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._missing import is_pandas_na, is_scalar_nan
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, validate_data
from torch import Tensor, nn
from torch.utils.data import Subset

from .backbones.inputs import MAX_SIDE, unreadable
from .backbones.kinds import as_array, check_images
from .exceptions import PictureError, warn
from .progress import progress
from .settings import MAX_BATCH, MAX_SCALE
from .tangents.subsets import as_entries

_LIGHTEST_MEAN = 0.2  # below it alpha="auto" is far too large
_COUNT = Interval(Integral, 1, None, closed="left")
_SCALE = Interval(Real, 0, MAX_SCALE, closed="right")

CONSTRAINTS: dict[str, list[Any]] = {
    "backbone": [str, nn.Module, callable],
    "trainable": [str, list, tuple],
    "anchor": [StrOptions({"pretrained", "finetuned"}), nn.Module],
    "head": [str, None],
    "kernel": [StrOptions({"full", "pseudo"})],
    "n_directions": [_COUNT],
    "alpha": [_SCALE, StrOptions({"auto"})],
    "tangent_scale": [Interval(Real, 0, MAX_SCALE, closed="both")],
    "target_scale": [_SCALE, StrOptions({"auto"})],
    "n_components": [_COUNT, StrOptions({"auto"}), None],
    "n_prompts": [_COUNT],
    "lora_rank": [_COUNT],
    "image_size": [Interval(Integral, 1, MAX_SIDE, closed="both"), tuple, list, None],
    "pretrained": ["boolean"],
    "batch_size": [Interval(Integral, 1, MAX_BATCH, closed="both"), StrOptions({"auto"})],
    "max_epochs": [_COUNT],
    "learning_rate": [Interval(Real, 0, None, closed="neither")],
    "finetune_params": [dict, None],
    "predict_with": [StrOptions({"auto", "linear", "network"})],
    "precision": [StrOptions({"auto", "float32", "float64", "bfloat16"})],
    "keep": [StrOptions({"features"}), None],
    "augment": [StrOptions({"flip"}), None],
    "backbone_has_seen": ["boolean", StrOptions({"auto", "unknown"})],
    "num_workers": [Interval(Integral, 0, None, closed="left")],
    "on_error": [StrOptions({"raise", "skip"})],
    "device": [str, torch.device],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}


class CheckedRows(NamedTuple):
    """Training rows that are learned; `numbers` are their places among those passed in.

    The others have weight zero, or are `skipped`: dicts of "row" and "reason".
    """

    X: Any
    y: np.ndarray
    weights: np.ndarray
    ids: list[str | int | None] | None
    numbers: np.ndarray
    skipped: list[dict[str, Any]]
    labels: np.ndarray = np.empty(0, dtype=np.int64)

    def encoded(self, classes: np.ndarray) -> CheckedRows:
        """Return them with class indices as labels."""
        return self._replace(labels=encode_labels(self.y, classes))


def draw_seed(random_state: Any) -> int:
    """Return the seed of a scikit-learn random_state; None draws one from the system."""
    if random_state is None:
        return secrets.randbits(31)
    return int(check_random_state(random_state).randint(2**31 - 1))


def check_together(estimator: Any) -> None:
    """Raise ValueError where parameters that are valid by themselves exclude one another."""
    size = estimator.image_size
    sides = [] if size is None else np.atleast_1d(size).tolist()
    if len(sides) > 2 or any(side != int(side) or not 1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(
            f"Expected image_size to be one or two integers from 1 to {MAX_SIDE}, got {size!r}."
        )
    trained = isinstance(estimator.anchor, nn.Module)
    anchor = "a trained module" if trained else repr(estimator.anchor)
    if trained and not isinstance(estimator.backbone, str):
        raise ValueError(
            "Expected backbone to be a name with a trained module as anchor, which takes its place, got "
            f"{type(estimator.backbone).__name__}. Leave it out, or name the one whose pictures fit."
        )
    if not trained and getattr(estimator, "head", None) is not None:
        raise ValueError(
            f"Expected head=None with anchor={anchor}, got {estimator.head!r}: it names the classifier "
            "of a module that is the anchor."
        )
    if estimator.anchor != "pretrained":
        entries = set(as_entries(estimator.trainable))
        if any(entry.startswith("ladder") for entry in entries):
            fine = 'Choose trainable="norm" or "prompt" to fine-tune.'
            raise ValueError(
                'Expected anchor="pretrained" with a ladder, which reads the frozen network, got '
                f"{anchor}. {'Pass the module as backbone.' if trained else fine}"
            )
        if trained and (entries <= {"head"} or entries & {"prompt", "prompt-deep", "lora"}):
            raise ValueError(
                "Expected trainable to name parameters that the module at the anchor has, got "
                f'{estimator.trainable!r}. Choose "norm", "bias", "full" or a pattern; for a readout or '
                "new prompts or LoRA pass the module as backbone."
            )
        if estimator.tangent_scale == 0:
            raise ValueError(
                f"Expected tangent_scale > 0 with anchor={anchor}, got 0: the subset would stay where "
                "training left it, and keep what it learned from forgotten rows."
            )
    if estimator.kernel == "pseudo":
        for name, value in (("anchor", anchor), ("predict_with", repr(estimator.predict_with))):
            if value not in ("'pretrained'", "'auto'", "'linear'"):
                raise ValueError(
                    f'Expected kernel="full" with {name}={value}, got "pseudo", in which every class '
                    "reads the tangents by itself: it cannot be written back as weights of a network."
                )


def check_training_rows(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    sample_ids: Any,
    *,
    vectors: bool,
    reset: bool,
) -> CheckedRows:
    """Return the rows without those of weight zero, and those that are skipped as on_error asks.

    With `vectors`, X is 2-D; with `reset` it gives the estimator its `n_features_in_` and
    `feature_names_in_`. A UserWarning is raised where alpha="auto" meets a mean weight below 0.2.
    """
    if vectors:
        X, y = check_vectors(estimator, X, y, reset=reset)
    else:
        if y is None:
            raise ValueError("Expected class labels, got None: fit requires y to be passed.")
        X = check_images(X, look=estimator.on_error == "raise")
        y = column_or_1d(y, warn=True)
    check_consistent_length(X, y)
    y = np.asarray(y)
    check_labels(y)
    check_classification_targets(y)
    weights = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
    ids = check_ids(sample_ids, len(y))
    keep = np.flatnonzero(weights)
    if not len(keep):
        raise ValueError("Expected at least one positive sample_weight, got only zeros.")
    skipped = []
    if estimator.on_error == "skip" and not vectors:
        skipped = _unreadable(estimator, X, keep)
        keep = np.setdiff1d(keep, [each["row"] for each in skipped])
    mean = weights[keep].mean()
    automatic = estimator.get_params(deep=False).get("alpha") == "auto"
    if reset and automatic and mean < _LIGHTEST_MEAN:
        warn(
            'alpha="auto" expects sample weights with a mean near one, and these have a mean of '
            f"{mean:.2g}: the ridge will be far too large. Scale the weights, or choose alpha."
        )
    if len(keep) < len(y):
        if isinstance(X, list):
            X = [X[i] for i in keep]
        else:
            in_memory = isinstance(X, np.ndarray) and not isinstance(X, np.memmap)
            X = X[keep] if in_memory else Subset(X, keep.tolist())
        y, weights = y[keep], weights[keep]
        ids = None if ids is None else [ids[i] for i in keep]
    return CheckedRows(X, y, weights, ids, keep, skipped)


def _unreadable(estimator: Any, X: Any, rows: np.ndarray) -> list[dict[str, Any]]:
    """Return which rows cannot be read, and why; warn of them, and raise PictureError if none can."""
    numbers = rows.tolist()
    reasons = unreadable(X, numbers, estimator.num_workers)
    shown = progress(reasons, "checking", len(numbers), unit="row", show=estimator.verbose)
    found = [
        {"row": row, "reason": reason}
        for row, reason in zip(numbers, shown, strict=True)
        if reason is not None
    ]
    if len(found) == len(numbers):
        raise PictureError(
            f"None of the {len(X):,} rows can be read; row {numbers[0]}: {found[0]['reason']}", numbers
        )
    if found:
        warn(f"Left out {len(found):,} of {len(X):,} rows, which cannot be read: skipped_ lists them.")
    return found


def check_vectors(estimator: Any, X: Any, y: Any = "no_validation", *, reset: bool) -> Any:
    """Return X as a float32 array of shape (n, f), and y where it is given; see `validate_data`."""
    X = as_array(X) if isinstance(X, Tensor) else X
    try:
        if _is_dataset(X):
            raise ValueError(f"Expected a 2D array of numbers, got {type(X).__name__}.")
        return validate_data(estimator, X, y, dtype=np.float32, reset=reset)
    except (TypeError, ValueError) as error:
        if not _are_pictures(X):
            raise
        raise ValueError(
            "Expected X of shape (n_samples, n_features) for a backbone on vectors, as the default "
            '("mlp") is one; got pictures, as it seems. For pictures pass another backbone, such as '
            f'backbone="tf_efficientnet_lite0". {error}'
        ) from error


def _is_dataset(X: Any) -> bool:
    """Return whether X is read item by item, for which numpy would need an end that is an IndexError."""
    held = isinstance(X, (list, tuple, str)) or hasattr(X, "__array__") or hasattr(X, "toarray")
    return not held and hasattr(X, "__getitem__")


def _are_pictures(X: Any) -> bool:
    """Return whether X would be taken, or nearly, by a backbone for pictures."""
    if len(getattr(X, "shape", ())) > 2 or isinstance(X, (str, os.PathLike)):
        return True
    try:
        check_images(X)
    except PictureError:
        return True
    except Exception:  # of whatever reads the first item
        return False
    return True


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless an argument is one of some words."""
    if value not in choices:
        raise ValueError(f"Expected {name} to be {' or '.join(map(repr, choices))}, got {value!r}.")


def check_text(name: str, value: Any) -> str:
    """Return an argument that is text and can be stored; raise ValueError for others."""
    if not isinstance(value, str) or not _is_text(value):
        raise ValueError(f"Expected {name} to be text, got {value!r:.80}. Convert it by str().")
    return value


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless a similarity can reach a threshold."""
    if not -1 <= threshold <= 1:  # NaN is not
        raise ValueError(
            f"Expected threshold to be between -1 and 1, as a cosine is, got {threshold!r}. The very "
            "content has 1."
        )


def check_request_ids(request_id: Any) -> list[str]:
    """Return the names of requests as a list of text."""
    names = [request_id] if isinstance(request_id, str) else list(request_id)
    return [check_text("request_id", name) for name in names]


def check_ids(sample_ids: Any, n: int | None = None) -> list[str | int | None] | None:
    """Return sample ids, one a row of `n`, or None where there are none; a missing one is None.

    Text is brought to Unicode's normal form C: an id that is typed in matches one that was learned.
    """
    if sample_ids is None:
        return None
    if isinstance(sample_ids, str):
        raise ValueError(f"Expected a list of sample ids, got {sample_ids!r}. Put it in a list.")
    ids = column_or_1d(np.asarray(sample_ids, dtype=object)).tolist()
    if n is not None and len(ids) != n:
        raise ValueError(f"Expected one sample id a row ({n}), got {len(ids)}.")
    return [_checked_id(each, row) for row, each in enumerate(ids)]


def _checked_id(value: Any, row: int) -> str | int | None:
    if _is_missing(value):
        return None
    if isinstance(value, str) and _is_text(value):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and abs(int(value)) < 2**63:
        return int(value)
    raise ValueError(
        f"Expected sample ids to be text or integers of 64 bits, got {value!r:.80} "
        f"({type(value).__name__}) in row {row}. Convert the column (astype(str), say); None is no id."
    )


def _is_missing(value: Any) -> bool:
    return value is None or is_scalar_nan(value) or is_pandas_na(value)


def _is_text(value: str) -> bool:
    """Return whether text can be stored: half a surrogate pair, as odd file names give, can not."""
    return re.search("[\ud800-\udfff]", value) is None


def check_labels(y: np.ndarray) -> None:
    """Raise ValueError, naming the row, unless labels are text, numbers or booleans, as can be saved."""
    plain = (str, bool, int, float, np.bool_, np.integer, np.floating)
    if y.dtype.kind in "biu" or (y.dtype.kind == "f" and np.isfinite(y).all()):
        return
    for row, label in enumerate(y):
        if (
            _is_missing(label)
            or not isinstance(label, plain)
            or (isinstance(label, str) and not _is_text(label))
        ):
            raise ValueError(
                "Expected class labels to be text, numbers or booleans, and none to be missing, got "
                f"{label!r:.80} ({type(label).__name__}) in row {row}. Leave the row out, or convert "
                "the column (astype(str), say)."
            )


def check_classes(y: np.ndarray, classes: Any, known: np.ndarray | None = None) -> np.ndarray:
    """Return all class labels in order: those known before, of new rows, and named by the caller.

    Raise ValueError unless they are two or more, and `classes` names all of them if it is given.
    """
    names = np.unique(y) if known is None else unique_labels(known, y)
    if classes is not None:
        names = unique_labels(names, classes)
        missing = np.setdiff1d(names, unique_labels(classes)).tolist()
        if missing:
            raise ValueError(
                "Expected classes to name every class of the rows learned and passed, got a list "
                f"without {missing}. Add them to classes, or leave it out."
            )
    if len(names) < 2:
        raise ValueError(
            f"Expected at least 2 classes, got one class: {names.tolist()}. Pass rows of another "
            "class too, or name all classes: classes=..."
        )
    return names


def encode_labels(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return class indices, and -1 for a label that is not among the classes."""
    index = {label: i for i, label in enumerate(classes.tolist())}
    return np.array([index.get(label, -1) for label in y.tolist()], dtype=np.int64)


def class_indices(y: Any, classes: np.ndarray) -> np.ndarray:
    """Return the index of each label among the classes; raise ValueError for other labels."""
    y = column_or_1d(y)
    labels = encode_labels(y, classes)
    if (labels < 0).any():
        raise ValueError(
            f"Expected labels among the model's classes {classes.tolist()}, got "
            f"{np.unique(y[labels < 0]).tolist()}."
        )
    return labels
