"""The state of a fitted classifier as an HTML table, under scikit-learn's diagram."""

from __future__ import annotations

from html import escape
from typing import Any

from .exactness import exactness_text


def state_table(classifier: Any) -> str:
    """Return what a fitted classifier rests on."""
    adapter = classifier._adapter
    exact = exactness_text(adapter.exactness, ladder_alone=adapter.is_ladder_alone)
    cells = {
        "learned": f"{classifier.n_samples_learned_:,} rows",
        "forgotten": f"{classifier.n_samples_forgotten_:,} rows",
        "deletions": exact if adapter.n_forgotten else "none yet",
        "state": "public adapter only" if classifier._private is None else "public and private",
        "anchor": adapter.settings.anchor,
    }
    cells |= adapter.described()
    if hasattr(classifier, "alpha_"):
        chosen = ", chosen by the sums" if classifier.alpha_path_ else ""
        cells["alpha"] = f"{classifier.alpha_:.4g}{chosen}"
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in cells.items()
    )
    return f"<table class='fastntk-state'>{rows}</table>"
