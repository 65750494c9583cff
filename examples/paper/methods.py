"""The rows of the table: every method with the settings that it may choose from on validation data."""

from __future__ import annotations

import copy
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
from tasks import Problem, with_settings

from fastntk_sk import baselines
from fastntk_sk.baselines.recent import squared_gradients
from fastntk_sk.exceptions import EmptyClassWarning


@dataclass(frozen=True)
class Method:
    """A way to forget, and the settings that are tried on validation rows.

    `prepare` returns, by name, what `run` takes of those settings' common work.
    """

    run: Callable[..., Any]
    grid: tuple[dict[str, Any], ...] = ({},)
    largest: int = 10**9  # training images beyond which it is not run
    prepare: Callable[..., dict[str, Any]] = lambda *rows: {}


def unlearn(
    estimator, X_retain, y_retain, X_forget, y_forget, *, random_state=None, forgotten=None, **settings
):
    """Forget in closed form, without the retain set; a fitted state is never changed in place.

    `settings` are the ridge and the reading, if not the estimator's own.
    """
    if forgotten is None:
        forgotten = copy.copy(estimator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EmptyClassWarning)
            forgotten.unlearn(X_forget, y_forget)
    return with_settings(forgotten, **settings) if settings else forgotten


def ssd(estimator, X_retain, y_retain, X_forget, y_forget, *, random_state, share, **settings):
    """SSD, its threshold a share of the largest ratio of informations that there can be, N / N_f."""
    alpha = share * (1 + len(y_retain) / len(y_forget))
    return baselines.ssd(estimator, X_retain, y_retain, X_forget, y_forget, alpha=alpha, **settings)


def _squares(estimator, X_retain, y_retain, X_forget, y_forget) -> dict[str, Any]:
    sets = (X_retain, y_retain), (X_forget, y_forget)
    return {"squares": tuple(squared_gradients(estimator, X, y) for X, y in sets)}


def _rates(*rates: float, **others: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"learning_rate": rate, **others} for rate in rates)


OURS = "ours"
CLOSED = {
    OURS: Method(
        unlearn,
        tuple(
            {"alpha": alpha, "predict_with": reading}
            for alpha in (0.03, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
            for reading in ("network", "linear")
        ),
        prepare=lambda *rows: {"forgotten": unlearn(*rows)},
    ),
    "Fast-NTK, dual form": Method(baselines.fast_ntk_dual, largest=1000),
    "full NTK": Method(baselines.full_ntk, largest=300),
}
STEPPING = {
    "Max Loss": Method(baselines.max_loss, _rates(1e-4, 3e-4, 1e-3, 3e-3)),
    "Random Label": Method(baselines.random_label, _rates(1e-4, 3e-4, 1e-3, 3e-3)),
    "finetune": Method(baselines.finetune, _rates(5e-4, 2e-3, 5e-3, 1e-2)),
    "SCRUB": Method(
        baselines.scrub,
        _rates(5e-4, 2e-3, 5e-3) + _rates(2e-3, 5e-3, max_epochs=5, epochs=8, alpha=0.1),
    ),
    "SalUn": Method(baselines.salun, _rates(1e-4, 5e-4, 2e-3) + _rates(5e-4, 2e-3, alpha=5.0)),
    "SSD": Method(
        ssd,
        tuple(
            {"share": share, "dampening": dampening}
            for share in (0.1, 0.3, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97)
            for dampening in (0.1, 1.0)
        ),
        prepare=_squares,
    ),
}


def measured(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what a call returns, its seconds, and by how many MiB the process grew meanwhile."""
    process, done, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        result = call()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return result, {"seconds": seconds, "peak_mib": max(0, peak[0] - before) / 2**20}


def forget(method: Method, settings: dict[str, Any], original: Any, rows: Problem, seed: int) -> Any:
    """Run a method on the rows of a problem."""
    return method.run(original, *rows.retain, *rows.forget, random_state=seed, **settings)
