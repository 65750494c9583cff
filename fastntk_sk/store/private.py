"""The private half of a fitted estimator, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..exceptions import NoFeaturesError
from ..publishing.adapter import Adapter
from ..state import State
from .ledger import Ledger, Segment
from .receipts import chain_heads, senses

_AT_ONCE = 1024  # kept rows that are compared together


@dataclass(frozen=True)
class Private:
    """What a model rests on, and what was done to it.

    Parameters
    ----------
    state : State

    ledger : Ledger

    receipts : list of dict
        Never changed in place.

    chain : str
        Names the chain of this site's receipts.
    """

    state: State
    ledger: Ledger
    receipts: list[dict[str, Any]]
    chain: str

    def with_receipt(self, receipt: dict[str, Any]) -> Private:
        """Return the same with one more receipt."""
        return replace(self, receipts=[*self.receipts, receipt])

    def adapter(self, classes: np.ndarray) -> Adapter:
        """Return the public half, without what is said of deletions."""
        state = self.state
        return Adapter(
            state.model,
            state.parameters,
            state.model.displacement(state.parameters),
            state.class_rows == 0,
            state.n_rows,
            classes,
        )

    def directions(self, h: Tensor) -> Tensor:
        """Return unit vectors (n, width) of augmented features, from the mean of the learned rows."""
        return torch.nn.functional.normalize(h[:, :-1].double() - self.state.statistics.mean)

    def nearest(
        self, features: np.ndarray, contents: Sequence[bytes], n: int, threshold: float
    ) -> list[list[dict[str, Any]]]:
        """Return the learned rows that are most like others; see `FastNTKClassifier.find`.

        `features` has shape (m, width + 1), as `LinearizedModel.all_tangents` gives them.
        """
        wanted = self.directions(torch.from_numpy(features))
        found = [list[dict[str, Any]]() for _ in contents]
        kept = [
            (s, digest) for s, segment in enumerate(self.ledger.segments) for digest in segment.features
        ]
        if not kept:
            raise NoFeaturesError(
                'Expected kept features to compare with, got none. Fit with keep="features".'
            )
        for row, content in enumerate(contents):
            for segment in self.ledger.segments:
                found[row] += _told(segment, segment.digest(content), 1.0, same=True)
        for start in range(0, len(kept), _AT_ONCE):
            part = kept[start : start + _AT_ONCE]
            block = np.stack([self.ledger.segments[s].features[digest] for s, digest in part])
            similarity = (wanted @ self.directions(torch.from_numpy(block)).T).numpy()
            for row, column in zip(*np.nonzero(similarity >= threshold), strict=True):
                s, digest = part[column]
                segment = self.ledger.segments[s]
                if segment.digest(contents[row]) != digest:
                    found[row] += _told(segment, digest, float(similarity[row, column]), same=False)
        return [sorted(each, key=lambda row: -row["similarity"])[:n] for each in found]

    def described(self, adapter: Adapter) -> Adapter:
        """Return an adapter of this state with what its card says of the deletions."""
        return adapter.after(
            n_forgotten=sum(one["n_rows"] - one["n_rectified"] for one in self.receipts),
            exactness=senses(self.receipts),
            heads=chain_heads(self.receipts, self.chain),
        )


def _told(segment: Segment, digest: bytes, similarity: float, *, same: bool) -> list[dict[str, Any]]:
    """Return what is told of the learned rows of one content."""
    return [
        {
            "similarity": similarity,
            "sample_id": segment.ids.get(entry.owner),
            "label": entry.label,
            "n_copies": count,
            "same": same,
        }
        for entry, count in segment.rows.get(digest, {}).items()
    ]
