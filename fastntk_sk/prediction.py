"""Predicting: the methods of the classifier that read the public half alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import softmax

from .backbones.inputs import Rows
from .state import Halves, Progress


class ScoresMixin:
    """What scores of new rows say.

    The classifier provides `classes_`, `_scores(X)` and `_sharpness`.
    """

    classes_: np.ndarray
    _scores: Callable[[Any], np.ndarray]
    _sharpness: float

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of the model (see `predict_with`), about target_scale * (onehot - 1/C).

        Parameters
        ----------
        X : array-like
            As in :meth:`fit`.

        Returns
        -------
        scores : ndarray of shape (n,) for two classes, else (n, n_classes)
            For two classes, the second score less the first. A class without rows has -inf.
        """
        scores = self._scores(X)
        if scores.shape[1] == 2:
            return scores[:, 1] - scores[:, 0]
        return scores

    def predict(self, X: Any) -> np.ndarray:
        """Predict class labels.

        Parameters
        ----------
        X : array-like
            As in :meth:`fit`.

        Returns
        -------
        labels : ndarray of shape (n,)
        """
        scores, classes = self._scored(X)
        return classes[scores.argmax(axis=1)]

    def _scored(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and the labels of their columns."""
        return self._scores(X), self.classes_

    def predict_proba(self, X: Any) -> np.ndarray:
        r"""Return scores as numbers that sum to one: not calibrated probabilities.

        A softmax of :math:`\log(99 (C - 1)) f(x) / target\_scale`, so that a row that is fitted
        exactly gets 0.99. A squared-loss model does not know its own confidence: wrap it in
        :class:`~sklearn.calibration.CalibratedClassifierCV` for probabilities to rely on; what it
        learns has seen its rows, so fit it on others than those that may have to be forgotten.

        Parameters
        ----------
        X : array-like
            As in :meth:`fit`.

        Returns
        -------
        probabilities : ndarray of shape (n, n_classes)
        """
        scores = self._scores(X)  # first: it tells whether the estimator is fitted
        return softmax(self._sharpness * scores, axis=1)


class GivenScoresMixin(ScoresMixin):
    """For what is fitted from the start: its parameters `classes` and `sharpness` are given."""

    classes: np.ndarray
    sharpness: float

    @property
    def classes_(self) -> np.ndarray:  # type: ignore[override]
        """Class labels."""
        return self.classes

    @property
    def _sharpness(self) -> float:  # type: ignore[override]
        return self.sharpness

    def __sklearn_is_fitted__(self) -> bool:
        return True


class PredictionMixin(ScoresMixin, Halves):
    """Scores of the public half.

    The classifier provides `_rows` and `_progress`.
    """

    _rows: Callable[[Any], Rows]
    _progress: Progress

    @property
    def _sharpness(self) -> float:  # type: ignore[override]
        return self._adapter.sharpness

    def _scores(self, X: Any) -> np.ndarray:
        return self._scored(X)[0]

    def _scored(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, adapter = self._rows(X), self._adapter  # once: another thread may add classes meanwhile
        return adapter.scores(self._progress(rows, "predicting", len(rows))), adapter.classes
