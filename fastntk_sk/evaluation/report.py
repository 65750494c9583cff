"""All metrics of several models in one table."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils._optional_dependencies import check_pandas_support
from torch import nn

from ..exceptions import warn
from ._checks import Classifier, NoNoiseFloorWarning, check_oracle, check_sets
from .attacks import population_mia_auc
from .metrics import accuracies, activation_distance, tug_of_war
from .residual import residual_shares

if TYPE_CHECKING:
    import pandas as pd

_NOISE_FLOOR = "second oracle (noise floor)"
_OWN_ROWS = ("original", "oracle", _NOISE_FLOOR)


def unlearning_report(
    unlearned: Any,
    *,
    original: Any,
    oracle: Any,
    second_oracle: Any = None,
    retain: Any,
    forget: Any,
    test: Any,
    radius: float | None = None,
) -> pd.DataFrame:
    """Compare models with a retrained one, and with the variation between two retrainings.

    Parameters
    ----------
    unlearned : classifier, Module or callable, or dict of str to them
        One model (its row is "unlearned"), or several by name. A callable unlearns:
        `unlearn(original, X_retain, y_retain, X_forget, y_forget)` gets a copy of the original, which it
        may change, and returns a model, as the functions of :mod:`fastntk_sk.baselines` do.

    original : classifier or Module
        The model before the deletion. Models are torch modules, or objects with what :class:`Classifier`
        names. A plain module returns scores of the classes 0, 1, ... for X as it is; for others there is
        :class:`~fastntk_sk.baselines.ModuleClassifier`.

    oracle : classifier or Module
        Retrained on the retain set.

    second_oracle : classifier or Module, default=None
        Retrained once more with another seed. Its row is the noise floor: a model is as good as
        retrained where it scores no worse than this one.

    retain, forget, test : pair (X, y)

    radius : float, default=None
        Adds the column "residual_knowledge", for perturbations of this size.

    Returns
    -------
    report : DataFrame
        One row for each model: "original", the unlearned ones, "oracle", "second oracle (noise floor)".
        Labels are the most probable classes of `predict_proba`. The oracle has NaN where it would be
        compared with itself.

        ========================== ====================================================
        column                     ideal value
        ========================== ====================================================
        accuracy_retain            the oracle's
        accuracy_forget            the oracle's, which is not zero
        accuracy_test              the oracle's
        tow                        1; :func:`tug_of_war`
        activation_distance_forget 0; :func:`activation_distance`
        activation_distance_test   0
        mia_auc                    the oracle's; :func:`population_mia_auc`
        residual_knowledge         the oracle's; :func:`residual_knowledge`, with `radius`
        ========================== ====================================================

    Raises
    ------
    MissingOracleError, NotFittedError, ValueError
        As in :func:`accuracy_gaps`; also if an oracle has learned the forget set, if an unlearned model
        is the original itself, or if names clash.

    TypeError
        If a callable returns nothing.

    ImportError
        If pandas is not installed.

    Warns
    -----
    NoNoiseFloorWarning
        If there is no second oracle.

    UndefinedMetricWarning
        As in :func:`residual_knowledge`.

    Examples
    --------
    >>> from copy import deepcopy
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.evaluation import unlearning_report
    >>> X, y = load_iris(return_X_y=True)
    >>> forget, retain, test = (X[::5], y[::5]), (X[1::5], y[1::5]), (X[2::5], y[2::5])
    >>> original = FastNTKClassifier(random_state=0).fit(*retain).partial_fit(*forget)
    >>> oracle, second = (FastNTKClassifier(random_state=seed).fit(*retain) for seed in (0, 1))
    >>> report = unlearning_report(
    ...     deepcopy(original).unlearn(*forget), original=original, oracle=oracle,
    ...     second_oracle=second, retain=retain, forget=forget, test=test,
    ... )
    >>> report["tow"].index.tolist()
    ['original', 'unlearned', 'oracle', 'second oracle (noise floor)']
    >>> float(report.loc["unlearned", "tow"])
    1.0
    """
    pandas = check_pandas_support("unlearning_report")
    sets = check_sets(retain, forget, test)
    models = named_models(unlearned, original, oracle, sets)
    if second_oracle is None:
        warn(
            "There is no second oracle: nothing says which differences are those of any two "
            "retrainings. Retrain once more with another seed and pass it as second_oracle.",
            NoNoiseFloorWarning,
        )
    else:
        models[_NOISE_FLOOR], _ = check_oracle(second_oracle, oracle, sets["retain"][0])
    for model in (oracle, second_oracle):
        if hasattr(model, "can_unlearn"):
            _check_never_learned(model, sets)
    remembering = {name: Remembering(model) for name, model in models.items()}
    rows = {name: _row(model, remembering["oracle"], sets) for name, model in remembering.items()}
    report = pandas.DataFrame.from_dict(rows, orient="index")
    if radius is not None:
        shares = residual_shares(models, *sets["forget"], radius=radius)
        report["residual_knowledge"] = pandas.Series(shares)
    return report


def _check_never_learned(oracle: Any, sets: dict[str, Any]) -> None:
    """Raise if an oracle has learned forgotten rows, and more rows than the retain set has.

    A retained row may be a copy of a forgotten one, so finding it in the ledger alone proves nothing.
    """
    X, y = sets["forget"]
    found = oracle.can_unlearn(X, y)
    n_held = len(y) - len(found["indices"]) if found["indices"] else found["n_rows"]
    n_learned, n_retained = oracle.n_samples_learned_, len(sets["retain"][1])
    if n_held and n_learned > n_retained:
        raise ValueError(
            f"Expected an oracle that never learned the forget set, got one that learned {n_learned:,} "
            f"rows, {n_held:,} of the forget set among them, where the retain set has {n_retained:,}. "
            "Retrain on the retain set alone: baselines.retrain(...)."
        )


def named_models(
    unlearned: Any, original: Any, oracle: Any, sets: dict[str, Any]
) -> dict[str, Classifier]:
    """Return the classifiers by the names of their rows: original, unlearned ones, oracle."""
    named = dict(unlearned) if isinstance(unlearned, Mapping) else {"unlearned": unlearned}
    if not named or set(_OWN_ROWS) & set(named):
        raise ValueError(
            f"Expected at least one unlearned model, of names other than {_OWN_ROWS}, got {list(named)}."
        )
    X = sets["retain"][0]
    before, retrained = check_oracle(original, oracle, X)
    found = {}
    for name, model in named.items():
        if callable(model) and not isinstance(model, nn.Module) and not hasattr(model, "predict_proba"):
            model = model(copy.deepcopy(original), *sets["retain"], *sets["forget"])
            if model is None:
                raise TypeError(f"Expected {name!r} to return the unlearned model, got None.")
        if model is original:
            raise ValueError(
                "Expected the model before the deletion as original, got the very same object as an "
                "unlearned one. unlearn works in place: keep a copy.deepcopy of the model first."
            )
        found[name], _ = check_oracle(model, oracle, X)
    return {"original": before, **found, "oracle": retrained}


class Remembering:
    """A fitted estimator that predicts each set, told apart by identity, once."""

    def __init__(self, estimator: Classifier) -> None:
        self.estimator = estimator
        self.classes_ = estimator.classes_
        self.seen: dict[int, np.ndarray] = {}

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of shape (n, C)."""
        if id(X) not in self.seen:
            self.seen[id(X)] = np.asarray(self.estimator.predict_proba(X))
        return self.seen[id(X)]

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable classes."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def _row(model: Remembering, oracle: Remembering, sets: dict[str, Any]) -> dict[str, float]:
    """Return the columns of one model, without those in which it would be compared with itself."""
    row = {f"accuracy_{name}": value for name, value in accuracies(model, sets).items()}
    if model is not oracle:
        row["tow"] = tug_of_war(model, oracle, **sets)
        for name in ("forget", "test"):
            row[f"activation_distance_{name}"] = activation_distance(model, oracle, sets[name][0])
    return row | {"mia_auc": population_mia_auc(model, sets["forget"], sets["test"])}
