"""The state of a fitted classifier as an HTML table, under scikit-learn's diagram."""

from __future__ import annotations

from html import escape
from typing import Any

from ..escaping import visible


def state_table(classifier: Any) -> str:
    """Return what a fitted classifier rests on."""
    state = "public adapter only" if classifier._private is None else "public and private"
    cells = classifier._adapter.summary() | {"state": state}
    if hasattr(classifier, "alpha_"):
        chosen = ", chosen by the sums" if classifier.alpha_path_ else ""
        cells["alpha"] = f"{classifier.alpha_:.4g}{chosen}"
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(visible(value))}</td></tr>"
        for name, value in cells.items()
    )
    return f"<table class='fastntk-state'>{rows}</table>"
