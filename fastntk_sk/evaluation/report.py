"""All metrics of several models in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils._optional_dependencies import check_pandas_support

from ..exceptions import warn
from ._checks import NoNoiseFloorWarning, check_oracle, check_sets
from .attacks import population_mia_auc
from .metrics import accuracies, activation_distance, tug_of_war

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
) -> pd.DataFrame:
    """Compare models with a retrained one, and with the variation between two retrainings.

    Parameters
    ----------
    unlearned : estimator or dict of str to estimator
        One model (its row is "unlearned"), or several by name.

    original : estimator
        The model before the deletion.

    oracle : estimator
        Retrained on the retain set.

    second_oracle : estimator, default=None
        Retrained once more with another seed. Its row is the noise floor: a model is as good as
        retrained where it scores no worse than this one.

    retain, forget, test : pair (X, y)

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
        ========================== ====================================================

    Raises
    ------
    MissingOracleError, NotFittedError, ValueError
        As in :func:`accuracy_gaps`; also if an oracle has learned the forget set, if an unlearned model
        is the original itself, or if names clash.

    ImportError
        If pandas is not installed.

    Warns
    -----
    NoNoiseFloorWarning
        If there is no second oracle.

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
    models = named_models(unlearned, original, oracle)
    if second_oracle is None:
        warn(
            "There is no second oracle: nothing says which differences are those of any two "
            "retrainings. Retrain once more with another seed and pass it as second_oracle.",
            NoNoiseFloorWarning,
        )
    else:
        check_oracle(second_oracle, oracle)
        models[_NOISE_FLOOR] = second_oracle
    sets = check_sets(retain, forget, test)
    for model in (oracle, second_oracle):
        if hasattr(model, "can_unlearn"):
            _check_never_learned(model, sets)
    reference = Remembering(oracle)
    rows = {
        name: _row(reference if model is oracle else Remembering(model), reference, sets)
        for name, model in models.items()
    }
    return pandas.DataFrame.from_dict(rows, orient="index")


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


def named_models(unlearned: Any, original: Any, oracle: Any) -> dict[str, Any]:
    """Return the checked models by the names of their rows: original, unlearned ones, oracle."""
    named = dict(unlearned) if isinstance(unlearned, Mapping) else {"unlearned": unlearned}
    if not named or set(_OWN_ROWS) & set(named):
        raise ValueError(
            f"Expected at least one unlearned model, of names other than {_OWN_ROWS}, got {list(named)}."
        )
    for model in (original, *named.values()):
        check_oracle(model, oracle)
    if any(model is original for model in named.values()):
        raise ValueError(
            "Expected the model before the deletion as original, got the very same object as an "
            "unlearned one. unlearn works in place: keep a copy.deepcopy of the model first."
        )
    return {"original": original, **named, "oracle": oracle}


class Remembering:
    """A fitted estimator that predicts each set, told apart by identity, once."""

    def __init__(self, estimator: Any) -> None:
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
