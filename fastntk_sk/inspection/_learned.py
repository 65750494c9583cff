"""The learned rows of a fitted estimator with their features, group by group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_consistent_length
from torch import Tensor

from ..classifier import FastNTKClassifier, check_summable, learned_as
from ..exceptions import InspectionError
from ..state import State
from ..sums.influence import LeaveOut
from ..sums.memory import require

_AT_ONCE = 512  # rows that are read together, where groups are no larger


def check_shared_features(clf: Any) -> State:
    """Return the state of an estimator, or raise an error unless all classes read the same features."""
    if not isinstance(clf, FastNTKClassifier):
        raise TypeError(
            f"Expected a fitted FastNTKClassifier, got {type(clf).__name__}. Pass the last step of a "
            "Pipeline, or the best_estimator_ of a search, and what enters it."
        )
    state = clf._held.state
    if state.settings.anchor != "pretrained":
        raise InspectionError(
            "Expected a model at the pretrained anchor, got one whose anchor was trained on the rows: "
            'no formula tells where it would be without one of them. Fit with trainable="ladder".'
        )
    if state.model.sizes[1]:
        raise InspectionError(
            "Expected a model in which every class reads the same features, got tangents of each class "
            '(kernel="full"). Fit with trainable="ladder" or "head", or kernel="pseudo".'
        )
    return state


def check_two_classes(state: State) -> None:
    """Raise InspectionError where fewer than two classes have rows: nothing competes with one."""
    if (state.class_rows > 0).sum() < 2:
        raise InspectionError(
            "Expected learned rows of two classes at least, got those of one, which always wins. Learn "
            "rows of another class first (partial_fit)."
        )


@dataclass(frozen=True)
class Learned:
    """Learned rows of a request, in the order of their groups.

    `order` holds their places in X and `sizes` the number of rows of each group; `labels` and `weights`
    are those of the ledger, by place in X.
    """

    clf: FastNTKClassifier
    rows: Any
    removals: list[Any]
    order: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    @classmethod
    def find(cls, clf: FastNTKClassifier, X: Any, y: Any, groups: Any) -> Learned:
        """Match rows with what was learned; raise UnknownSampleError for rows that were not."""
        held = clf._held
        if X is None:
            raise ValueError("Expected the learned rows, got None. Pass X.")
        rows, match = clf._match(held, X, y, None, "one")
        match.check()
        labels, weights = learned_as(match.removals)
        n = len(labels)
        if groups is None:
            names = np.arange(n)
        else:
            check_consistent_length(labels, groups)
            names = _places(column_or_1d(groups))
        sizes = np.bincount(names)
        if sizes.max() >= held.ledger.n_rows:
            raise ValueError(
                f"Expected groups to leave a row, got one of all {held.ledger.n_rows} learned rows. "
                "Pass other groups."
            )
        return cls(clf, rows, match.removals, np.argsort(names, kind="stable"), sizes, labels, weights)

    @classmethod
    def kept(cls, clf: FastNTKClassifier) -> Learned:
        """Take all learned rows, whose features are kept; raise NoFeaturesError where they are not."""
        ledger = clf._held.ledger
        removals = ledger.all_rows()
        check_summable(None, removals, ledger.features(removals))
        labels, weights = learned_as(removals)
        n = len(labels)
        return cls(clf, None, removals, np.arange(n), np.ones(n, dtype=np.int64), labels, weights)

    def only(self, order: np.ndarray) -> Learned:
        """Return some of the rows, in this order, each as a group."""
        return replace(self, order=order, sizes=np.ones(len(order), dtype=np.int64))

    def solution(self) -> LeaveOut:
        """Return the solution of the sums, at the alpha in force."""
        state = self.clf._held.state
        return LeaveOut(
            state.statistics,
            alpha=state.alpha,
            tangent_scale=state.settings.tangent_scale,
            target_scale=state.settings.target_scale,
        )

    def check_memory(self, n_val: int = 0) -> None:
        """Raise InsufficientMemoryError unless there is room for what depends on the rows."""
        model, largest = self.clf._held.state.model, max(_AT_ONCE, int(self.sizes.max()))
        width, n_classes = model.sizes[0] + 1, model.settings.n_classes
        numbers = 3 * largest * (largest + width)  # a group's matrix, and its rows as they are whitened
        numbers += 3 * len(self.sizes) * n_classes + len(self.labels) * n_classes
        numbers += n_val * (2 * width + largest + 3 * n_classes)
        require(
            8 * numbers + model.memory_needed(),
            f"{len(self.labels):,} rows, {int(self.sizes.max()):,} in the largest group, need",
            "Pass fewer rows at once, validation rows too, or smaller groups.",
        )

    def blocks(self, what: str) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
        """Yield places in X, the groups' sizes and augmented features, of whole groups at once."""
        features = self._features(what)
        start = group = 0
        while group < len(self.sizes):
            ends = self.sizes[group:].cumsum()
            n_groups = max(1, int(np.searchsorted(ends, _AT_ONCE, side="right")))
            stop = start + int(ends[n_groups - 1])
            h = torch.stack(list(islice(features, stop - start)))
            yield self.order[start:stop], self.sizes[group : group + n_groups], h
            start, group = stop, group + n_groups

    def _features(self, what: str) -> Iterator[Tensor]:
        """Yield the rows' augmented features: those that were kept, else by a pass of the backbone."""
        clf, removals = self.clf, [self.removals[i] for i in self.order]
        held, n = clf._held, len(removals)
        kept = held.ledger.features(removals)
        if all(row is not None for row in kept):
            yield from (torch.from_numpy(row) for row in clf._progress(kept, what, n))
            return
        contents = clf._progress(self.rows.read(self.order.tolist()), what, n)
        unchanged = held.ledger.unchanged(contents, removals)
        for h, _ in held.state.model.all_tangents(unchanged, self.order):
            yield from h.cpu()

    def emptied(self) -> np.ndarray:
        """Return which classes lose their last row with each group, bool of shape (n_groups, C)."""
        left = self.clf._held.state.class_rows
        group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        gone = np.zeros((len(self.sizes), len(left)), dtype=np.int64)
        np.add.at(gone, (group, self.labels[self.order]), 1)
        return left <= gone


def _places(groups: np.ndarray) -> np.ndarray:
    """Return the place of each row's group among the groups, in the order of `numpy.unique`."""
    if any(name is None or name != name for name in groups.tolist()):
        raise ValueError(
            "Expected a group for each row, got None or NaN among them. Give such rows groups of their "
            "own."
        )
    return np.unique(groups, return_inverse=True)[1]


def features_of(
    clf: FastNTKClassifier, X: Any, what: str, digests: list[bytes] | None = None
) -> Iterator[Tensor]:
    """Yield the augmented features of rows that need not be learned, some at a time.

    Digests of their contents are appended to `digests`, if it is given.
    """
    held, rows = clf._held, clf._rows(X, clf._held.state.model)
    shown = clf._progress(rows, what, len(rows))
    noted = shown if digests is None else held.ledger.noted(shown, digests)
    for h, _ in held.state.model.all_tangents(noted):
        yield h.cpu()
