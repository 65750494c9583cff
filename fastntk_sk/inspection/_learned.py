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
        """Match rows with what was learned; without X, take all rows whose features are kept.

        Raise UnknownSampleError for rows that were not learned.
        """
        held = clf._held
        if X is None:
            rows, removals = None, held.ledger.all_rows()
            check_summable(rows, removals, held.ledger.features(removals))
        else:
            rows, match = clf._match(held, X, y, None, "one")
            match.check()
            removals = match.removals
        labels, weights = learned_as(removals)
        n = len(labels)
        if groups is None:
            names = np.arange(n)
        else:
            check_consistent_length(labels, groups)
            _, names = np.unique(column_or_1d(groups), return_inverse=True)
        sizes = np.bincount(names)
        if sizes.max() >= held.ledger.n_rows:
            raise ValueError(
                f"Expected groups to leave a row, got one of all {held.ledger.n_rows} learned rows. "
                "Pass other groups."
            )
        return cls(clf, rows, removals, np.argsort(names, kind="stable"), sizes, labels, weights)

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
            yield from h

    def emptied(self) -> np.ndarray:
        """Return which classes lose their last row with each group, bool of shape (n_groups, C)."""
        left = self.clf._held.state.class_rows
        group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        gone = np.zeros((len(self.sizes), len(left)), dtype=np.int64)
        np.add.at(gone, (group, self.labels[self.order]), 1)
        return left <= gone


def features_of(
    clf: FastNTKClassifier, X: Any, what: str, digests: list[bytes] | None = None
) -> Iterator[Tensor]:
    """Yield the augmented features of rows that need not be learned, batch by batch.

    Digests of their contents are appended to `digests`, if it is given.
    """
    held, rows = clf._held, clf._rows(X, clf._held.state.model)
    shown = clf._progress(rows, what, len(rows))
    noted = shown if digests is None else held.ledger.noted(shown, digests)
    for h, _ in held.state.model.all_tangents(noted):
        yield h
