"""One self-contained HTML page about a model: its state, deletions, accuracy and figures."""

from __future__ import annotations

import base64
import io
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score
from sklearn.utils._optional_dependencies import check_pandas_support
from sklearn.utils.validation import check_is_fitted

from ..escaping import visible
from ..publishing.adapter import LINEAR_IS_EXACT, Adapter
from ..publishing.config import public_name
from ..publishing.html import state_table
from .display import ChangedPredictionsDisplay, ForgettingTimelineDisplay

_MOST_CLASSES = 20  # of which a confusion matrix is shown
_TITLE = "What this model rests on"
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}
th,td{border-bottom:1px solid #ddd;padding:.3rem .7rem;text-align:left}
.dataframe td{overflow-wrap:anywhere}img{max-width:100%}h1,h2{line-height:1.2}
footer{color:#666;font-size:.85rem;margin-top:3rem}
"""
_EXACT = (
    "&ldquo;Exact for the linearised model&rdquo; means that its parameters are those of a fit that "
    "never saw the rows, up to rounding. It says nothing about the pretraining data of the backbone, "
    "about a trained anchor, hyper-parameters that were chosen with the rows, or versions that were "
    "published before."
)

_NOT_COVERED = "".join(
    f"<li>{place}</li>"
    for place in (
        "backups, snapshots and free blocks of disks on which the state was",
        "versions of the adapter that were published or copied before",
        "what the backbone learned before, and what a trained anchor has seen",
        "fitted steps before the classifier, and hyper-parameters that were chosen with the rows",
        "the pictures themselves, and whatever else was made of them",
    )
)
_SEEN = {True: "yes", False: "no", "unknown": "it is not known"}


def report_page(
    estimator: Any,
    *,
    X: Any = None,
    y: Any = None,
    before: Any = None,
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

    Returns
    -------
    page : str
        HTML. It shows images of `X`, and is as private as they are.

    Raises
    ------
    NotFittedError
        If an estimator is not fitted.

    ImportError
        If matplotlib or pandas is not installed.

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
    adapter: Adapter = estimator._adapter
    exact = f"{_EXACT} {LINEAR_IS_EXACT}" if adapter.is_linear else _EXACT
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    parts = [f"<h1>{_TITLE}</h1>", f"<p>Written on {written}.</p>", state_table(estimator)]
    parts += ["<h2>Where it comes from</h2>", _provenance(adapter), f"<p>{exact}</p>"]
    receipts = estimator.receipts_
    if receipts:
        parts += ["<h2>Deletions</h2>", _deletions(receipts, adapter)]
        parts += ["<h3>Ends of the chains of receipts</h3>", _heads(adapter.heads)]
        parts.append(f"<h3>What a deletion does not cover</h3><ul>{_NOT_COVERED}</ul>")
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
    parts.append("<footer>fastntk_sk, arXiv:2312.14923</footer>")
    head = f"<meta charset='utf-8'><title>{_TITLE}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def _provenance(adapter: Adapter) -> str:
    """Return a table of the backbone, its weights, and the versions that are here."""
    model, origin = adapter.model, adapter.model.origin
    cells = {
        "backbone": public_name(model),
        "base model": origin["base_model"] or "unknown",
        "revision": origin["revision"] or "unknown",
        "checksum of its weights": model.backbone.digest(model.own_tensors()),
        "has it seen the rows": _SEEN[adapter.settings.backbone_has_seen],
        "checksum of the adapter": adapter.checksum,
        **{package: version(package) for package in ("fastntk_sk", "torch", "timm")},
    }
    return _table([*cells.items()], header=False, index=False)


def _heads(heads: dict[str, str]) -> str:
    """Return a table of the last receipt of each chain."""
    rows = [{"chain": chain, "last receipt": head} for chain, head in heads.items()]
    return _table(rows, index=False)


def _deletions(receipts: list[dict[str, Any]], adapter: Adapter) -> str:
    """Return the table of the receipts."""
    rows = [
        {
            "time": receipt["time"],
            "requests": ", ".join(receipt["request_ids"]) or "-",
            "rows forgotten": receipt["n_rows"] - receipt["n_rectified"],
            "rows rectified": receipt["n_rectified"],
            "rows left": receipt["n_samples_learned"],
            "copies left": receipt["n_copies_left"],
            "exactness": adapter.exactness_text(receipt["exactness"]),
            "relative residual": f"{receipt['residual']:.3g}",
            "drift": f"{receipt['drift']:.3g}",
            "receipt": receipt["checksum"],
            "seconds": f"{receipt['seconds']:.3g}",
        }
        for receipt in receipts
    ]
    return _table(rows, index=False)


def _accuracies(models: dict[str, Any], X: Any, y: np.ndarray) -> str:
    """Return tables of the accuracy by class, and of what each class is taken for now."""
    classes = models["now"].classes_
    present = classes[np.isin(classes, y)]
    predicted = {name: model.predict(X) for name, model in models.items()}
    accuracies = {
        name: [accuracy_score(y, found), *recall_score(y, found, labels=present, average=None)]
        for name, found in predicted.items()
    }
    html = _table(accuracies, ["all classes", *present], float_format="{:.1%}".format)
    if len(classes) > _MOST_CLASSES:
        return html
    confused = confusion_matrix(y, predicted["now"], labels=classes)
    return html + _table(confused, [f"true {c}" for c in classes], [f"predicted {c}" for c in classes])


def _table(cells: Any, rows: Any = None, columns: Any = None, **shown: Any) -> str:
    """Return a table as HTML; pandas escapes its cells."""
    pandas = check_pandas_support("report_page")
    with pandas.option_context("display.max_colwidth", None):
        frame = pandas.DataFrame(cells, rows, columns).rename(visible).rename(visible, axis="columns")
        frame = frame.map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
        return frame.to_html(border=0, justify="left", **shown)


def _image(display: Any) -> str:
    """Return the figure of a display as an HTML image that holds its own data."""
    import matplotlib.pyplot as plt

    written = io.BytesIO()
    display.figure_.savefig(written, format="png", dpi=110)
    plt.close(display.figure_)
    data = base64.b64encode(written.getvalue()).decode()
    return f"<img alt='{type(display).__name__}' src='data:image/png;base64,{data}'>"
