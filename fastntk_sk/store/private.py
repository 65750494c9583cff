"""The private half of a fitted estimator, in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..publishing.adapter import Adapter
from ..state import State
from .ledger import Ledger
from .receipts import chain_heads, senses


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

    def described(self, adapter: Adapter) -> Adapter:
        """Return an adapter of this state with what its card says of the deletions."""
        return adapter.after(
            n_forgotten=sum(receipt["n_rows"] for receipt in self.receipts),
            exactness=senses(self.receipts),
            heads=chain_heads(self.receipts),
        )
