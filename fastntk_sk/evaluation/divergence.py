"""How differently margins are distributed over many models."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import check_scalar

from ._checks import check_margins

_EMPTY_BIN = 1e-5


def klom(unlearned: Any, oracle: Any, *, bins: int = 20, clip: float = 100.0) -> np.ndarray:
    r"""Return how differently each example's margin is distributed, KL divergence of margins.

    .. math::

        KLoM_i = \sum_b p_b \log \frac{p_b}{q_b},

    p and q being histograms of the margin of example i under the unlearned and under the oracle
    models, with equal bins over the joint range of both. 0 is ideal, more is worse. Histograms of
    few models differ by chance: compare with what a second set of oracle models scores. The paper
    reports the mean and the 95th percentile over the retain, forget and test set.

    Parameters
    ----------
    unlearned, oracle : array-like of shape (n_models, n_examples)
        As in :func:`u_lira`.

    bins : int, default=20

    clip : float, default=100.0
        Margins are clipped to [-clip, clip] first.

    Returns
    -------
    divergences : ndarray of shape (n_examples,)
        At most log(1e5) = 11.5.

    Raises
    ------
    MissingOracleError, ValueError
        As in :func:`u_lira`.

    Notes
    -----
    A bin without any oracle model counts as q = 1e-5, as in the authors' own evaluation: the
    divergence would be infinite wherever one unlearned model stands alone, which with finitely many
    models happens under perfect unlearning too.

    References
    ----------
    Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching",
    arXiv:2410.23232, appendix E.1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastntk_sk.evaluation import klom
    >>> never = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    >>> same_and_shifted = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    >>> klom(same_and_shifted, never).round(4)  # 1/4 log 1/2 + 3/4 log 3/2 = 0.1308
    array([0.    , 0.1308])
    """
    check_scalar(bins, "bins", Integral, min_val=1)
    check_scalar(clip, "clip", Real, min_val=0, include_boundaries="neither")
    parts = [np.clip(part, -clip, clip) for part in check_margins(unlearned, oracle)]
    divergences = np.zeros(parts[0].shape[1])
    for i in range(len(divergences)):
        columns = [part[~np.isnan(part[:, i]), i] for part in parts]
        edges = np.histogram_bin_edges(np.concatenate(columns), bins)
        p, q = (np.histogram(column, edges)[0] / len(column) for column in columns)
        held = p > 0
        divergences[i] = np.sum(p[held] * np.log(p[held] / np.maximum(q[held], _EMPTY_BIN)))
    return divergences
