"""What baselines start from and return: scores of a linearised model's network at other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from ..backbones.inputs import Rows
from ..backbones.kinds import check_images
from ..modes import without_modes
from ..settings import Settings
from ..tangents.model import LinearizedModel, Parameters
from ..tangents.projection import Projection
from ..training.finetuning import SubspaceNetwork
from ..validation import class_indices, draw_seed
from .modules import ModuleClassifier, ModuleOriginal, as_classifier, require_rows


@dataclass(eq=False, repr=False)
class BaselineClassifier(ClassifierMixin, BaseEstimator):
    """A classifier at given weights, the result of a baseline; it cannot be fitted.

    Parameters
    ----------
    model : LinearizedModel
        Network, subset and preprocessing of the original estimator.

    parameters : Parameters
        Readout and displacement of the subset from the model's anchor.

    predict_with : "network" or "linear"
        Whether the displaced network predicts, or the linearised model.

    classes : ndarray of shape (n_classes,)

    sharpness : float
        Factor of the scores in the softmax of `predict_proba`, the original's.

    empty : bool ndarray of shape (n_classes,), default=None
        Classes without rows in the retain set, which are never predicted.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    """

    model: LinearizedModel
    parameters: Parameters
    predict_with: str
    classes: np.ndarray
    sharpness: float
    empty: np.ndarray | None = None

    @property
    def classes_(self) -> np.ndarray:
        """Class labels."""
        return self.classes

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores of shape (n, n_classes), or (n,) for two classes: the second less the first.

        A class without rows has -inf.
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels with the largest scores."""
        return self.classes[self._scores(X).argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the softmax of `sharpness` times the scores, which is not calibrated."""
        return softmax(self.sharpness * self._scores(X), axis=1)

    @without_modes
    def _scores(self, X: Any) -> np.ndarray:
        rows = rows_of(self.model, X)
        scores = self.model.scores(self.parameters, rows, predict_with=self.predict_with)
        if self.empty is not None:
            scores[:, self.empty] = -np.inf
        return scores

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        return f"{type(self).__name__}({self.model.backbone.name}, {len(self.classes)} classes)"


def check_origin(settings: Settings) -> None:
    """Raise ValueError where the anchor was trained elsewhere: its rows can not be taken out of it."""
    if settings.anchor == "trained":
        raise ValueError(
            'Expected anchor="pretrained" or "finetuned", got a trained module, which has seen rows, '
            "and whose pretrained values are not known. Train that module without the rows."
        )


def check_is_ours(estimator: Any) -> None:
    """Raise TypeError for a module, of which not all baselines can start."""
    if isinstance(estimator, (nn.Module, ModuleClassifier)):
        raise TypeError(
            f"Expected a FastNTKClassifier, got a module, {type(estimator).__name__}. Train it again by "
            "its own code; finetune, max_loss, random_label, scrub and salun start from any module."
        )


class Original:
    """The network of a fitted estimator, which is not changed: where every baseline starts."""

    def __init__(self, estimator: Any) -> None:
        check_is_ours(estimator)
        source = estimator
        if not isinstance(estimator, BaselineClassifier):
            check_is_fitted(estimator)
            source = estimator._adapter
        self.model, self.parameters, self.sharpness = source.model, source.parameters, source.sharpness
        self.classes = estimator.classes_
        if self.model.settings.kernel == "pseudo":
            raise ValueError(
                'Expected an estimator with kernel="full", got "pseudo", whose predictions are those of '
                "no network to start from. Fit with the other kernel."
            )

    def check_finetuned(self) -> None:
        """Raise ValueError for another anchor."""
        if self.model.settings.anchor == "pretrained":
            raise ValueError(
                'Expected an estimator with anchor="finetuned", got the pretrained anchor, which has no '
                "SGD, and whose predictions are not those of a network with one set of weights. Fit "
                "with the other anchor, for which a ladder makes way for a subset of the network."
            )
        check_origin(self.model.settings)

    def trainable(self) -> SubspaceNetwork:
        """Return a trainable copy whose plain softmax is the `predict_proba` of the network.

        That is the estimator's own where it predicts with the network, as the fine-tuned anchor does,
        and with a ladder, whose readout is trained. A linearised estimator is taken in its network
        form. A ladder beside tangents is no network at one set of weights, and raises ValueError.
        """
        model, subset = self.model, self.model.tangent.subset
        if model.ladder is not None and subset.names:
            raise ValueError(
                "Expected a ladder or a subset of the network, got both, trainable="
                f"{model.settings.trainable}: the ladder reads the network at its pretrained weights, "
                "so that there is no one set of weights to start from. Fit with one of them."
            )
        return SubspaceNetwork(
            model.backbone.net if model.ladder is None else model.ladder,
            subset,
            Projection(subset.size, subset.size, 0),
            self.parameters.W * self.sharpness,
            self.parameters.delta,
            model.directions * self.sharpness if model.moved is None and subset.names else None,
            model.settings.augment,
        ).to(model.directions.device)

    def trained(self, network: SubspaceNetwork) -> list[nn.Parameter]:
        """Return the weights that are trained."""
        return [network.z, network.W]

    def batches(
        self, X: Any, y: Any, size: int, draws: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield normalised batches, class indices and row numbers; shuffled if `draws` is given."""
        rows = rows_of(self.model, X)
        check_consistent_length(rows, y)
        require_rows(len(rows))
        labels = torch.from_numpy(class_indices(y, self.classes))
        spec, readout = self.model.backbone.spec, self.model.directions
        order = torch.arange(len(rows)) if draws is None else torch.randperm(len(rows), generator=draws)
        for chosen in order.split(size):
            some = [rows[i] for i in chosen.tolist()]
            batch = spec.normalise(some, readout.dtype, readout.device)
            yield batch, labels[chosen].to(readout.device), chosen

    def all_batches(self, *sets: tuple[Any, Any]) -> tuple[list[Tensor], Tensor]:
        """Return the batches of several sets (X, y), of the model's size, and all class indices."""
        parts = [part for X, y in sets for part in self.batches(X, y, self.model.settings.batch_size)]
        return [batch for batch, _, _ in parts], torch.cat([labels.cpu() for _, labels, _ in parts])

    def joined(self, one: Any, other: Any) -> Any:
        """Return the rows of two sets as one."""
        return ConcatDataset([rows_of(self.model, X).items for X in (one, other)])

    def result(self, network: SubspaceNetwork, y_retain: Any) -> BaselineClassifier:
        """Return the trained classifier; see `at`."""
        z, W = (tensor.detach().cpu().clone() for tensor in self.trained(network))
        return self.at(Parameters(W / self.sharpness, z), y_retain)

    def at(
        self, parameters: Parameters, y_retain: Any, predict_with: str = "network"
    ) -> BaselineClassifier:
        """Return the classifier at given parameters.

        Like a retrained model, it never predicts a class that the retain set lacks. A baseline that
        does not use the retain set may get none.
        """
        empty = None
        if y_retain is not None and len(y_retain):
            kept = class_indices(y_retain, self.classes)
            empty = np.bincount(kept, minlength=len(self.classes)) == 0
        if self.model.ladder is not None:  # it reads the undisplaced network
            predict_with = "linear"
        return BaselineClassifier(
            self.model, parameters, predict_with, self.classes, self.sharpness, empty
        )


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of inputs, scores, class indices, rows


def _start(classifier: Any) -> Any:
    """Return where the gradient steps start."""
    is_module = isinstance(classifier, ModuleClassifier)
    return ModuleOriginal(classifier) if is_module else Original(classifier)


class Training:
    """AdamW, without weight decay, on the network of an estimator, or on a module that takes X."""

    def __init__(self, model: Any, X: Any, learning_rate: float, random_state: Any) -> None:
        self.original = _start(as_classifier(model, X))
        self.network = self.original.trainable()
        self.draws = torch.Generator().manual_seed(draw_seed(random_state))
        self.trained = self.original.trained(self.network)
        self.optimiser = torch.optim.AdamW(self.trained, lr=learning_rate, weight_decay=0.0)

    def steps(self, X: Any, y: Any, loss: Loss, *, epochs: int, batch_size: int) -> Iterator[None]:
        """Train for some epochs, in a random order of the rows; yield after each step."""
        for _ in range(epochs):
            for batch, labels, rows in self.original.batches(X, y, batch_size, self.draws):
                self.optimiser.zero_grad()
                loss(batch, self.network(batch), labels, rows).backward()
                self.optimiser.step()
                yield

    def run(self, X: Any, y: Any, loss: Loss, *, epochs: int, batch_size: int) -> None:
        """Train for some epochs."""
        for _ in self.steps(X, y, loss, epochs=epochs, batch_size=batch_size):
            pass

    def result(self, y_retain: Any) -> Any:
        """Return the trained classifier."""
        return self.original.result(self.network, y_retain)


def cross_entropy(x: Tensor, scores: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Return the mean cross entropy of a batch."""
    return nn.functional.cross_entropy(scores, labels)


@without_modes
def before_solve(estimator: Any) -> BaselineClassifier:
    """Return the network of a fine-tuned estimator as SGD left it, before the closing solve.

    Parameters
    ----------
    estimator : FastNTKClassifier
        Fitted with anchor="finetuned". SGD has seen all rows of the fit, forgotten rows included.

    Returns
    -------
    network : BaselineClassifier
        A plain SGD model: an original for baselines, or, if the estimator was fitted on the retain
        set, a plain retraining.

    Raises
    ------
    ValueError
        For another anchor.

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
    original.check_finetuned()
    W = estimator._state.tuning.W
    sgd = Parameters(W, W.new_zeros(original.model.projection.p))
    empty = estimator._state.class_rows == 0
    return BaselineClassifier(original.model, sgd, "network", original.classes, 1.0, empty)


@without_modes
def untrained(estimator: Any) -> BaselineClassifier:
    """Return an untrained model: the pretrained weights, and a readout of zeros.

    Parameters
    ----------
    estimator : FastNTKClassifier or BaselineClassifier
        Not the result of `full_ntk`: weights outside the subset are not reset.

    Returns
    -------
    fresh : BaselineClassifier

    Raises
    ------
    ValueError
        For a module as anchor, whose pretrained weights are not known.

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
    check_origin(original.model.settings)
    W, delta = original.parameters.W, original.parameters.delta
    start = -original.model.displacement(Parameters(W, torch.zeros_like(delta)))
    return original.at(Parameters(torch.zeros_like(W), start), None)


def rows_of(model: LinearizedModel, X: Any) -> Rows:
    """Return checked rows, decoded one at a time."""
    vectors = model.backbone.spec.size is None
    X = np.asarray(X, dtype=np.float32) if vectors else check_images(X)
    return Rows(X, model.backbone.spec)
