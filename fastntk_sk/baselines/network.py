"""What baselines start from and return: scores of a linearised model's network at other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor

from ..backbones.inputs import Rows
from ..prediction import GivenScoresMixin
from ..tangents.model import LinearizedModel, Parameters
from ..tangents.projection import Projection
from ..tangents.threads import kept_heap
from ..training.finetuning import SubspaceNetwork
from ..validation import encode_labels


class BaselineClassifier(GivenScoresMixin, ClassifierMixin, BaseEstimator):
    """A classifier at given weights, as a baseline leaves it; it cannot be fitted.

    Parameters
    ----------
    model : LinearizedModel
        Network, subset and preprocessing of the original estimator.

    parameters : Parameters
        Readout and displacement of the subset from the model's anchor.

    network : bool
        Whether the displaced network predicts, or the linearised model.

    classes : ndarray of shape (n_classes,)

    sharpness : float
        Of the softmax in `predict_proba`, the original's.

    empty : bool ndarray of shape (n_classes,), default=None
        Classes without rows in the retain set, which are never predicted.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    """

    def __init__(
        self,
        model: LinearizedModel,
        parameters: Parameters,
        network: bool,
        classes: np.ndarray,
        sharpness: float,
        empty: np.ndarray | None = None,
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.network = network
        self.classes = classes
        self.sharpness = sharpness
        self.empty = empty

    def _scores(self, X: Any) -> np.ndarray:
        rows = _rows(self.model, X)
        displaced = self.network and self.model.ladder is None  # a ladder reads the network as it was
        how = "network" if displaced else "linear"
        scores = self.model.scores(self.parameters, rows, predict_with=how)
        if self.empty is not None:
            scores[:, self.empty] = -np.inf
        return scores

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        return f"{type(self).__name__}({self.model.backbone.name}, {len(self.classes)} classes)"


class Original:
    """The network of a fitted estimator, with the rows of a baseline: where every baseline starts.

    Parameters
    ----------
    estimator : FastNTKClassifier or BaselineClassifier
        Fitted; not changed.
    """

    def __init__(self, estimator: Any) -> None:
        if isinstance(estimator, BaselineClassifier):
            self.model, self.parameters = estimator.model, estimator.parameters
            self.sharpness = estimator.sharpness
        else:
            check_is_fitted(estimator)
            adapter = estimator._state.adapter
            self.model, self.parameters = adapter.model, adapter.parameters
            self.sharpness = adapter.sharpness
        self.classes = estimator.classes_
        if self.model.settings.kernel == "pseudo":
            raise ValueError(
                'Expected an estimator with kernel="full", got "pseudo", whose predictions are those of '
                "no network to start from. Fit with the other kernel."
            )

    def network(self) -> SubspaceNetwork:
        """Return a trainable copy whose plain softmax is the `predict_proba` of the network.

        That is the estimator's own where it predicts with the network, as the fine-tuned anchor does,
        and with a ladder, whose readout is trained; a linearised estimator is taken in its network form.

        Raises
        ------
        ValueError
            For a ladder beside tangents, which is no network at one set of weights.
        """
        model, delta = self.model, self.parameters.delta.clone()
        subset = model.tangent.subset
        if model.ladder is not None and subset.names:
            raise ValueError(
                "Expected a ladder or a subset of the network, got both, trainable="
                f"{model.settings.trainable}: the ladder reads the network at its pretrained weights, "
                "so that there is no one set of weights to start from. Fit with one of them."
            )
        V = model.directions * self.sharpness if model.moved is None and subset.names else None
        return SubspaceNetwork(
            model.backbone.net if model.ladder is None else model.ladder,
            subset,
            Projection(subset.size, subset.size, 0),
            self.parameters.W * self.sharpness,
            delta,
            V,
        ).to(model.directions.device)

    def encode(self, y: Any) -> np.ndarray:
        """Return class indices of shape (n,)."""
        labels = encode_labels(np.asarray(y), self.classes)
        if (labels < 0).any():
            raise ValueError(
                f"Expected labels among classes_ = {self.classes.tolist()}, got others. Pass the rows "
                "with the labels that the estimator knows."
            )
        return labels

    def rows(self, X: Any) -> Rows:
        """Return checked rows, decoded one at a time."""
        return _rows(self.model, X)

    def batches(
        self, X: Any, y: Any, size: int, draws: torch.Generator | None = None
    ) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Yield normalised batches, class indices and row numbers; shuffled if `draws` is given."""
        rows = self.rows(X)
        check_consistent_length(rows, y)
        if not len(rows):
            raise ValueError("Expected at least one row in a set that a baseline learns from, got none.")
        labels = torch.from_numpy(self.encode(y))
        spec, readout = self.model.backbone.spec, self.model.directions
        order = torch.arange(len(rows)) if draws is None else torch.randperm(len(rows), generator=draws)
        with kept_heap():
            for chosen in order.split(size):
                batch = spec.normalise([rows[i] for i in chosen.tolist()], readout.dtype)
                yield batch.to(readout.device), labels[chosen].to(readout.device), chosen

    def all_batches(self, *sets: tuple[Any, Any]) -> tuple[list[Tensor], Tensor]:
        """Return the batches of several sets (X, y), of the model's size, and all class indices."""
        parts = [part for X, y in sets for part in self.batches(X, y, self.model.settings.batch_size)]
        return [batch for batch, _, _ in parts], torch.cat([labels.cpu() for _, labels, _ in parts])

    def result(self, network: SubspaceNetwork, y_retain: Any) -> BaselineClassifier:
        """Return the classifier of a trained network; see `at`."""
        W = network.W.detach().cpu() / self.sharpness
        return self.at(Parameters(W, network.z.detach().cpu().clone()), y_retain)

    def at(self, parameters: Parameters, y_retain: Any, network: bool = True) -> BaselineClassifier:
        """Return the classifier at given parameters.

        Like a retrained model, it never predicts a class that the retain set lacks; a baseline that
        does without the retain set may get none.
        """
        empty = None
        if y_retain is not None and len(y_retain):
            empty = np.bincount(self.encode(y_retain), minlength=len(self.classes)) == 0
        return BaselineClassifier(self.model, parameters, network, self.classes, self.sharpness, empty)


def before_solve(estimator: Any) -> BaselineClassifier:
    """Return the network of a fine-tuned estimator as SGD left it, before the closing solve.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Fitted with anchor="finetuned". SGD has seen all rows of the fit, forgotten ones included.

    Returns
    -------
    network : BaselineClassifier
        A plain SGD model: an original for baselines, or (of an estimator that was fitted on the
        retain set) a plain retraining.

    Raises
    ------
    ValueError
        For the pretrained anchor.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import before_solve
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(anchor="finetuned", max_epochs=2, random_state=0).fit(X, y)
    >>> before_solve(clf).predict_proba(X[:2]).shape
    (2, 3)
    """
    original = Original(estimator)
    if estimator._state.sgd is None:
        raise ValueError(
            'Expected an estimator with anchor="finetuned", got the pretrained anchor, which has no '
            "SGD. Fit with the other anchor, for which a ladder makes way for a subset of the network."
        )
    empty = estimator._state.class_rows == 0
    return BaselineClassifier(original.model, estimator._state.sgd, True, original.classes, 1.0, empty)


def untrained(estimator: Any) -> BaselineClassifier:
    """Return a fresh model: the pretrained values, and a readout of zeros.

    Parameters
    ----------
    estimator : FastNTKClassifier or BaselineClassifier
        Not of `full_ntk`: weights outside the subset are left where they are.

    Returns
    -------
    fresh : BaselineClassifier

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> from fastntk_sk.baselines import untrained
    >>> X, y = load_iris(return_X_y=True)
    >>> untrained(FastNTKClassifier(random_state=0).fit(X, y)).decision_function(X[:1]).tolist()
    [[0.0, 0.0, 0.0]]
    """
    original = Original(estimator)
    start = Parameters(original.parameters.W, torch.zeros_like(original.parameters.delta))
    parameters = Parameters(torch.zeros_like(start.W), -original.model.displacement(start))
    return BaselineClassifier(original.model, parameters, True, original.classes, original.sharpness)


def adamw(network: SubspaceNetwork, learning_rate: float) -> torch.optim.Optimizer:
    """Return AdamW without weight decay on what a network trains."""
    return torch.optim.AdamW([network.z, network.W], lr=learning_rate, weight_decay=0.0)


def descend(
    original: Original,
    network: SubspaceNetwork,
    X: Any,
    y: Any,
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    optimiser: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    draws: torch.Generator,
    masks: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Take epochs of steps on a loss.

    Parameters
    ----------
    original : Original

    network : SubspaceNetwork
        Trained in place.

    X, y : array-like

    loss : callable
        Of (inputs, scores, class indices, row numbers) of a batch.

    optimiser : Optimizer
        See `adamw`.

    epochs, batch_size : int

    draws : torch.Generator
        Order of the rows.

    masks : tuple of Tensor, default=None
        For z and W: entries that are 0 do not move.
    """
    trained = [network.z, network.W]
    before = [] if masks is None else [tensor.detach().clone() for tensor in trained]
    for _ in range(epochs):
        for batch, labels, rows in original.batches(X, y, batch_size, draws):
            optimiser.zero_grad()
            loss(batch, network(batch), labels, rows).backward()
            optimiser.step()
            if masks is not None:
                with torch.no_grad():
                    for tensor, start, mask in zip(trained, before, masks, strict=True):
                        tensor.copy_(start + mask * (tensor - start))


def _rows(model: LinearizedModel, X: Any) -> Rows:
    if model.backbone.spec.size is None:
        X = np.asarray(X, dtype=np.float32)
    return Rows(X, model.backbone.spec)
