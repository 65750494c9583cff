"""Shadow models for U-LiRA and KLoM: with a pretrained anchor, each is one small solve."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted

from ..modes import without_modes
from ..progress import progress
from ..sums.ridge import solve
from ..validation import class_indices
from .metrics import margins_of


@without_modes
def shadow_margins(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    n_models: int = 100,
    retain: float = 0.5,
    forget: float = 0.25,
    random_state: Any = 0,
    verbose: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Learn random parts of the rows many times, unlearn a part of each, and score all rows.

    Every model learns a random `retain + forget` share of the rows and then unlearns the `forget` share
    as the estimator does: it adds negative weights to its statistics and solves once. What is
    subtracted comes from a second pass, in another order and other batches, so that a Jacobian that
    depends on them is noticed; all Jacobians are kept, 2 n C k numbers of 4 (or 8) bytes. If deletion is
    perfect, the :func:`margins` of rows that a model unlearned and of rows that it never saw have one
    distribution. Parameters are not rounded as published ones are.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Fitted with anchor="pretrained", so that its linearised model has seen no row. Not changed.

    X, y : array-like

    n_models : int, default=100

    retain, forget : float, default=0.5 and 0.25
        Shares of the rows; the remaining rows are never seen.

    random_state : int or RandomState, default=0

    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    unlearned, oracle : ndarray of shape (n_models, n)
        For :func:`u_lira` and :func:`klom`: the margins of rows that a model learned and then unlearned,
        and of rows that it never saw. All else is NaN, also where a model retains no row of the class.

    Raises
    ------
    ValueError
        For a trained anchor, predict_with="network", or shares that leave a part without rows.

    References
    ----------
    Hayes et al., arXiv:2403.01218; Georgiev et al., arXiv:2410.23232.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.evaluation import shadow_margins, u_lira
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(n_components=16, random_state=0).fit(X, y)
    >>> result = u_lira(*shadow_margins(clf, X, y, n_models=60))
    >>> bool(abs(result.auc - 0.5) < 0.05)
    True
    """
    check_is_fitted(estimator)
    check_consistent_length(X, y)
    state = estimator._state
    model, settings = state.model, state.settings
    scales = {"tangent_scale": settings.tangent_scale, "target_scale": settings.target_scale}
    if settings.anchor != "pretrained":
        raise ValueError(
            f'Expected anchor="pretrained", got {settings.anchor!r}, which has seen its rows: a shadow '
            "model would need training of its own. Retrain models and call u_lira on their margins."
        )
    if settings.predict_with == "network":
        raise ValueError(
            'Expected predict_with="linear", got an estimator that predicts with the network, whose '
            'margins are not those of the small solves. Fit a clone with predict_with="linear".'
        )
    labels = class_indices(y, estimator.classes_)
    rows, n = estimator._rows(X), len(labels)
    n_retain, n_forget = round(retain * n), round(forget * n)
    n_learned = n_retain + n_forget
    if n_retain < 1 or n_forget < 1 or n_learned >= n:
        raise ValueError(
            f"Expected shares that leave at least one of the {n} rows to each part, got {n_retain} "
            f"retained, {n_forget} forgotten and {n - n_learned} rows that a model never saw."
        )
    truth, draws = torch.from_numpy(labels), check_random_state(random_state)

    def tangents(order: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        parts = zip(*model.all_tangents(rows[i] for i in order), strict=True)
        back = torch.from_numpy(np.argsort(order))
        h, J = (torch.cat(part).cpu()[back] for part in parts)
        return h, J

    passes = {1.0: tangents(np.arange(n)), -1.0: tangents(draws.permutation(n))}
    h, J = passes[1.0]
    found = np.full((2, n_models, n), np.nan)
    for i in progress(range(n_models), "shadow models", unit="model", show=verbose):
        order = draws.permutation(n)
        retained, forgotten, unseen = np.split(order, [n_retain, n_learned])
        statistics = model.empty_statistics()
        for part, sign in ((order[:n_learned], 1.0), (forgotten, -1.0)):
            for chosen in torch.from_numpy(part).split(256):
                of_rows = (features[chosen] for features in passes[sign])
                statistics.add(*of_rows, truth[chosen], torch.full((len(chosen),), sign))
        solution = solve(statistics, alpha=settings.alpha, **scales)
        W, z = solution.W.to(h.dtype), (solution.z * settings.tangent_scale**0.5).to(J.dtype)
        scores = estimator._adapter.sharpness * (h @ W.T + J @ z).double().numpy()
        # an estimator never predicts a class without rows
        scores[:, np.bincount(labels[retained], minlength=len(estimator.classes_)) == 0] = -np.inf
        margin = margins_of(scores, labels)
        margin[np.isinf(margin)] = np.nan
        found[0, i, forgotten], found[1, i, unseen] = margin[forgotten], margin[unseen]
    return found[0], found[1]
