"""One self-contained HTML page about a model: state, deletions, accuracy, pictures."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib.metadata import version
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.utils.validation import check_is_fitted

from ..publishing.adapter import LADDER_IS_EXACT
from ..publishing.exactness import exactness_text
from ..publishing.html import state_table
from ._checks import optional
from .pictures import ChangedPredictionsDisplay, ForgettingTimelineDisplay

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}
th,td{border-bottom:1px solid #ddd;padding:.3rem .7rem;text-align:left}
img{max-width:100%}h1,h2{line-height:1.2}footer{color:#666;font-size:.85rem;margin-top:3rem}
"""
_EXACT = (
    "&ldquo;Exact for the linearised model&rdquo; means: its parameters are those of a fit that never "
    "saw the rows, up to rounding. It says nothing about the data that the backbone was pretrained on, "
    "about a fine-tuned anchor, hyper-parameters that were chosen with the rows, or versions that were "
    "published before."
)


def report_page(
    estimator: Any,
    *,
    X: Any = None,
    y: Any = None,
    before: Any = None,
    title: str = "What this model rests on",
) -> str:
    """Return a page that shows itself without a connection: nothing in it is loaded from elsewhere.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Fitted.

    X, y : array-like, default=None
        Test rows: accuracy by class, and with `before` the pictures that changed most.

    before : FastNTKClassifier, default=None
        The model before its deletions.

    title : str

    Returns
    -------
    page : str
        HTML. It shows pictures of `X`: it is as private as they are.

    Raises
    ------
    NotFittedError
        If an estimator is not fitted.

    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.evaluation import report_page
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y).unlearn(X[:5])
    >>> page = report_page(clf, X=X, y=y)
    >>> "145 rows" in page, "http" in page
    (True, False)
    """
    check_is_fitted(estimator)
    receipts = estimator.receipts_
    exact = f"{_EXACT} {LADDER_IS_EXACT}" if estimator._adapter.is_ladder_alone else _EXACT
    parts = [f"<h1>{escape(title)}</h1>", state_table(estimator), f"<p>{exact}</p>"]
    if receipts:
        parts += ["<h2>Deletions</h2>", _receipts(receipts, estimator._adapter.is_ladder_alone)]
        parts.append(_drawn(ForgettingTimelineDisplay(receipts).plot()))
    if X is not None:
        models = {"now": estimator} | ({} if before is None else {"before": before})
        parts += ["<h2>Test rows</h2>", _accuracies(models, X, y)]
        if before is not None and getattr(X, "ndim", 3) != 2:
            parts.append("<h2>Seen anew</h2><p>Most changed first: total variation of the scores.</p>")
            parts.append(_drawn(ChangedPredictionsDisplay.from_estimators(before, estimator, X)))
    parts.append(f"<footer>fastntk_sk {version('fastntk_sk')}, arXiv:2312.14923</footer>")
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def _receipts(receipts: list[dict[str, Any]], ladder_alone: bool) -> str:
    names = {
        "time": "time",
        "n_rows": "rows forgotten",
        "n_samples_learned": "rows left",
        "exactness": "sense",
        "residual": "relative residual",
        "seconds": "seconds",
    }
    shown = [
        r | {"exactness": exactness_text(r["exactness"], ladder_alone=ladder_alone)} for r in receipts
    ]
    rows = [
        [f"{r[name]:.3g}" if isinstance(r[name], float) else str(r[name]) for name in names]
        for r in shown
    ]
    return _table(list(names.values()), rows)


def _accuracies(models: dict[str, Any], X: Any, y: Any) -> str:
    y = np.asarray(y)
    predictions = {name: model.predict(X) for name, model in models.items()}
    classes = next(iter(models.values())).classes_
    header = ["accuracy", *models]
    rows = [["all", *(f"{np.mean(found == y):.1%}" for found in predictions.values())]]
    for label in classes:
        of_class = y == label
        if of_class.any():
            cells = [f"{np.mean(found[of_class] == label):.1%}" for found in predictions.values()]
            rows.append([str(label), *cells])
    counts = confusion_matrix(y, predictions["now"], labels=classes)
    confusion = _table(
        ["true class", *(f"taken for {label}" for label in classes)],
        [[str(label), *map(str, row)] for label, row in zip(classes, counts, strict=True)],
    )
    return _table(header, rows) + (confusion if len(classes) <= 20 else "")


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _drawn(display: Any) -> str:
    """Return the picture of a display, inside the page."""
    written = io.BytesIO()
    display.figure_.savefig(written, format="png", dpi=110)
    optional("matplotlib.pyplot").close(display.figure_)
    data = base64.b64encode(written.getvalue()).decode()
    return f"<img alt='{type(display).__name__}' src='data:image/png;base64,{data}'>"
