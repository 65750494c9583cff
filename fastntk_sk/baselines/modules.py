"""Torch modules as classifiers, and as what baselines start from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import _num_samples, check_consistent_length
from torch import Tensor, nn

from ..validation import class_indices


@dataclass(eq=False, repr=False)
class ModuleClassifier(ClassifierMixin, BaseEstimator):
    """A trained torch module as a classifier; it cannot be fitted.

    Metrics, reports and the baselines that take gradient steps take a plain module too, as one of class
    indices whose inputs are the rows as they are. The module is read in eval mode, and not changed.

    Parameters
    ----------
    module : nn.Module
        Maps a batch of inputs to scores of shape (n, n_classes), of which a softmax makes
        probabilities; or to an object that has them as `logits`.

    classes : array-like of shape (n_classes,)
        Labels, in the order of the scores.

    transform : callable, default=None
        Maps a batch of X, a part of it as it was passed, to the array or tensor of floats that the
        module takes. None is for X that needs no change.

    batch_size : int, default=64

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from fastntk_sk.baselines import ModuleClassifier
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> clf = ModuleClassifier(net, ["cat", "dog"], lambda X: torch.from_numpy(X) / 255)
    >>> clf.predict_proba(np.zeros((3, 2, 2), dtype=np.uint8)).shape
    (3, 2)
    """

    module: nn.Module
    classes: Any
    transform: Callable[[Any], Tensor] | None = None
    batch_size: int = 64

    @property
    def classes_(self) -> np.ndarray:
        """Class labels."""
        return np.asarray(self.classes)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores of shape (n, n_classes), or (n,) for two classes: the second less the first."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels with the largest scores."""
        return self.classes_[self._scores(X).argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the softmax of the scores."""
        return softmax(self._scores(X), axis=1)

    def inputs(self, X: Any, rows: Any) -> Tensor:
        """Return some rows as the module takes them."""
        batch = _take(X, rows) if self.transform is None else self.transform(_take(X, rows))
        if not isinstance(batch, Tensor):
            batch = np.ascontiguousarray(batch)
            batch = torch.from_numpy(batch) if batch.dtype.kind == "f" else batch
        if not isinstance(batch, Tensor) or not batch.is_floating_point():
            raise ValueError(
                f"Expected inputs of the module as an array or a tensor of floats, got {batch.dtype}. "
                "Pass ModuleClassifier(module, classes, transform=...), whose transform makes a tensor "
                "of a part of X."
            )
        return batch.to(next(self.module.parameters(), torch.zeros(())))

    @torch.no_grad()
    def outputs(self, X: Any) -> np.ndarray:
        """Return float64 scores of shape (n, n_outputs)."""
        module = self.module
        if any(part.training for part in module.modules()):
            module = copy.deepcopy(module).eval()
        batches = torch.arange(_num_samples(X)).split(self.batch_size)
        parts = [scores_of(module(self.inputs(X, rows.numpy()))) for rows in batches]
        scores = torch.cat(parts).double().cpu().numpy()
        n_bad = np.isnan(scores).any(axis=1).sum()
        if n_bad:
            raise ValueError(
                f"Expected numbers as scores, got NaN in {n_bad:,} of {len(scores):,} rows. If the "
                "training of the module diverged, take a smaller learning rate."
            )
        return scores

    def _scores(self, X: Any) -> np.ndarray:
        scores, n_classes = self.outputs(X), len(self.classes_)
        if scores.shape[1] != n_classes:
            raise ValueError(
                f"Expected a module of {n_classes} scores a row, one for each of the classes, got "
                f"{scores.shape[1]}."
            )
        return scores

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        return f"{type(self).__name__}({type(self.module).__name__}, {len(self.classes_)} classes)"


def as_classifier(model: Any, X: Any) -> Any:
    """Return a plain module, which takes rows of X as they are, as a classifier of class indices."""
    if not isinstance(model, nn.Module):
        return model
    require_rows(_num_samples(X))
    n_classes = ModuleClassifier(model, ()).outputs(_take(X, [0])).shape[1]
    return ModuleClassifier(model, np.arange(n_classes))


class ModuleOriginal:
    """A module, which is not changed: where the baselines that take gradient steps may start."""

    def __init__(self, classifier: ModuleClassifier) -> None:
        self.classifier, self.classes = classifier, classifier.classes_

    def trainable(self) -> _Scores:
        """Return a trainable copy."""
        return _Scores(copy.deepcopy(self.classifier.module))

    def trained(self, network: _Scores) -> list[nn.Parameter]:
        """Return the weights that are trained."""
        return [weights for weights in network.parameters() if weights.requires_grad]

    def batches(
        self, X: Any, y: Any, size: int, draws: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield inputs, class indices and row numbers; shuffled if `draws` is given."""
        check_consistent_length(X, y)
        require_rows(_num_samples(X))
        labels = torch.from_numpy(class_indices(y, self.classes))
        order = torch.arange(len(labels))
        order = order if draws is None else order[torch.randperm(len(labels), generator=draws)]
        for rows in order.split(size):
            batch = self.classifier.inputs(X, rows.numpy())
            yield batch, labels[rows].to(batch.device), rows

    def joined(self, one: Any, other: Any) -> Any:
        """Return the rows of two sets as one."""
        if isinstance(one, Tensor):
            return torch.cat([one, other])
        return [*one, *other] if isinstance(one, list) else np.concatenate([one, other])

    def result(self, network: _Scores, y_retain: Any) -> ModuleClassifier:
        """Return the trained classifier, which may predict a class that the retain set lacks."""
        return replace(self.classifier, module=network.module)


class _Scores(nn.Module):
    """The scores of a module, in eval mode: running statistics and dropout are left alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch to scores of shape (n, n_classes)."""
        return scores_of(self.module(x))


def scores_of(output: Any) -> Tensor:
    """Return the scores in what a module returns."""
    scores = getattr(output, "logits", output)
    if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[1] < 2:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"Expected a module that returns scores of shape (n, n_classes), two or more, got {got}. "
            "Wrap it in a module that does."
        )
    return scores


def require_rows(n: int) -> None:
    """Raise ValueError for a set without rows."""
    if not n:
        raise ValueError("Expected at least one row in a set that a baseline learns from, got none.")


def _take(X: Any, rows: Any) -> Any:
    """Return some rows of X, as a part of the same kind."""
    if hasattr(X, "iloc"):
        return X.iloc[rows]
    return X[rows] if hasattr(X, "shape") else [X[i] for i in rows]
