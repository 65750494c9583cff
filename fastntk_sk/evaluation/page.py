"""One self-contained HTML page about a model: its state, deletions, accuracy and figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
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
from .display import ChangedPredictionsDisplay, ForgettingTimelineDisplay

_MOST_CLASSES = 20  # of which a confusion matrix is shown
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}
th,td{border-bottom:1px solid #ddd;padding:.3rem .7rem;text-align:left}
img{max-width:100%}h1,h2{line-height:1.2}footer{color:#666;font-size:.85rem;margin-top:3rem}
"""
_EXACT = (
    "&ldquo;Exact for the linearised model&rdquo; means that its parameters are those of a fit that "
    "never saw the rows, up to rounding. It says nothing about the pretraining data of the backbone, "
    "about a fine-tuned anchor, hyper-parameters that were chosen with the rows, or versions that were "
    "published before."
)
_RECEIPTS = ("time", "rows forgotten", "rows left", "exactness", "relative residual", "seconds")


def report_page(
    estimator: Any,
    *,
    X: Any = None,
    y: Any = None,
    before: Any = None,
    title: str = "What this model rests on",
) -> str:
    """Return a self-contained page: a browser shows it without a connection.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Fitted.

    X, y : array-like, default=None
        Test rows: adds the accuracy by class, and with `before` the images that changed most.

    before : FastNTKClassifier, default=None
        The model before its deletions.

    title : str

    Returns
    -------
    page : str
        HTML. It shows images of `X`, and is as private as they are.

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
    ladder_alone = estimator._adapter.is_ladder_alone
    exact = f"{_EXACT} {LADDER_IS_EXACT}" if ladder_alone else _EXACT
    parts = [f"<h1>{escape(title)}</h1>", state_table(estimator), f"<p>{exact}</p>"]
    if receipts:
        parts += ["<h2>Deletions</h2>", _table(_RECEIPTS, (_receipt(r, ladder_alone) for r in receipts))]
        parts.append(_image(ForgettingTimelineDisplay(receipts).plot()))
    if X is not None:
        models = {"now": estimator} | ({} if before is None else {"before": before})
        parts += ["<h2>Test rows</h2>", _accuracies(models, X, np.asarray(y))]
        if before is not None and getattr(X, "ndim", 3) != 2:
            parts.append(
                "<h2>Changed predictions</h2>"
                "<p>Most changed first, by the total variation between the class probabilities.</p>"
            )
            parts.append(_image(ChangedPredictionsDisplay.from_estimators(before, estimator, X)))
    parts.append(f"<footer>fastntk_sk {version('fastntk_sk')}, arXiv:2312.14923</footer>")
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def _receipt(receipt: dict[str, Any], ladder_alone: bool) -> list[str]:
    """Return the cells of one deletion, in the order of `_RECEIPTS`."""
    sense = exactness_text(receipt["exactness"], ladder_alone=ladder_alone)
    numbers = (f"{receipt[name]:.3g}" for name in ("residual", "seconds"))
    counts = (str(receipt[name]) for name in ("n_rows", "n_samples_learned"))
    return [receipt["time"], *counts, sense, *numbers]


def _accuracies(models: dict[str, Any], X: Any, y: np.ndarray) -> str:
    """Return tables of the accuracy by class, and of what each class is taken for now."""
    classes = next(iter(models.values())).classes_
    counts = [confusion_matrix(y, model.predict(X), labels=classes) for model in models.values()]
    rows = [["all", *(f"{of_model.trace() / len(y):.1%}" for of_model in counts)]]
    rows += [
        [str(label), *(f"{of_model[i, i] / of_model[i].sum():.1%}" for of_model in counts)]
        for i, label in enumerate(classes)
        if counts[0][i].any()
    ]
    accuracies = _table(["accuracy", *models], rows)
    if len(classes) > _MOST_CLASSES:
        return accuracies
    header = ["true class", *(f"predicted {label}" for label in classes)]
    confused = [[str(label), *map(str, row)] for label, row in zip(classes, counts[0], strict=True)]
    return accuracies + _table(header, confused)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _image(display: Any) -> str:
    """Return the figure of a display as an HTML image that holds its own data."""
    written = io.BytesIO()
    display.figure_.savefig(written, format="png", dpi=110)
    optional("matplotlib.pyplot").close(display.figure_)
    data = base64.b64encode(written.getvalue()).decode()
    return f"<img alt='{type(display).__name__}' src='data:image/png;base64,{data}'>"
