"""The private half of a fitted estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..state import State
from .ledger import Ledger


@dataclass(frozen=True)
class Private:
    """What an estimator rests on, and what describes its rows.

    Parameters
    ----------
    state : State

    ledger : Ledger

    receipts : list of dict

    chain : str
        Names the chain of this site's receipts.
    """

    state: State
    ledger: Ledger
    receipts: list[dict[str, Any]]
    chain: str
