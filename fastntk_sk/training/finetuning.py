"""anchor="finetuned": SGD on the trainable subset and a readout, through skorch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..backbones.inputs import InputSpec, Rows
from ..backbones.workers import ReadAhead
from ..exceptions import FineTuningError
from ..randomness import generator
from ..tangents.mirror import averaged
from ..tangents.projection import Projection
from ..tangents.subsets import Subset
from ..tangents.taps import shared_copy
from ..tangents.threads import kept_heap

_BATCH = 50
_SUBSPACE_RATE = 10.0  # step of a coordinate of the subspace, which moves p / k parameters a little


@dataclass(frozen=True)
class FineTuned:
    """Where SGD ended: the subset is at theta_0 + Q z, and W of shape (C, d + 1) reads [features, 1].

    `history` has a dict for each epoch.
    """

    z: Tensor
    W: Tensor
    history: list[dict[str, Any]]


class SquaredLoss(nn.Module):
    r"""The squared loss of classification, :math:`\|f - scale \, (onehot(y) - 1/C)\|^2`.

    >>> import torch
    >>> from fastntk_sk.training.finetuning import SquaredLoss
    >>> SquaredLoss(scale=2.0)(torch.tensor([[1.0, -1.0]]), torch.tensor([0]))
    tensor([0.])
    """

    def __init__(self, scale: float = 10.0, reduction: str = "none") -> None:
        super().__init__()
        self.scale, self.reduction = scale, reduction

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row, or their mean."""
        n_classes = logits.shape[1]
        onehot = nn.functional.one_hot(labels, n_classes).to(logits)
        losses = (logits - self.scale * (onehot - 1 / n_classes)).square().sum(1)
        return losses.mean() if self.reduction == "mean" else losses


class SubspaceNetwork(nn.Module):
    r"""A frozen network at theta + Q z under a linear readout; z and the readout are trained.

    It never leaves eval mode: running statistics and dropout would let rows influence each other.

    .. math:: f(x) = W [h(x; \theta + Q z), 1] + V (h(x; \theta + Q z) - h(x; \theta))

    W starts at `readout` of shape (C, d + 1) and z at zero, unless it is given. Without V, of shape
    (C, d), there is no second term. With augment="flip" f is averaged over a picture and its mirror
    image.
    """

    def __init__(
        self,
        net: nn.Module,
        subset: Subset,
        projection: Projection,
        readout: Tensor,
        z: Tensor | None = None,
        V: Tensor | None = None,
        augment: str | None = None,
    ) -> None:
        super().__init__()
        # of its own, because forward swaps tensors, which other threads may be reading
        self.net = shared_copy(net)
        self.subset, self.projection, self.V, self.augment = subset, projection, V, augment
        self.z = nn.Parameter(readout.new_zeros(projection.k) if z is None else z.clone())
        self.W = nn.Parameter(readout.clone())

    def train(self, mode: bool = True) -> SubspaceNetwork:
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Map a batch to scores of shape (n, C); the rows' weights are for the loss."""
        parts = self.subset.split(self.projection.expand(self.z))
        displaced = {name: self.net.get_parameter(name) + part for name, part in parts.items()}
        return averaged(partial(self._scores, displaced), x, self.augment)

    def _scores(self, displaced: dict[str, Tensor], x: Tensor) -> Tensor:
        h = functional_call(self.net, displaced, (x,))
        scores = h @ self.W[:, :-1].T + self.W[:, -1]
        return scores if self.V is None else scores + (h - self.net(x)) @ self.V.T


class _Dataset(torch.utils.data.Dataset):
    def __init__(self, rows: Rows, labels: np.ndarray, weights: np.ndarray) -> None:
        self.rows, self.labels, self.weights = rows, labels, weights

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int, float]:
        return self.rows[i], self.labels[i], self.weights[i]


def collate(spec: InputSpec, dtype: torch.dtype, items: Sequence[Any]) -> Any:
    """Make skorch's batch ({"x", "weight"}, labels) of (content, label, weight)."""
    rows, labels, weights = zip(*items, strict=True)
    batch = {"x": spec.normalise(rows, dtype), "weight": torch.tensor(np.array(weights))}
    return batch, torch.tensor(np.array(labels))


def finetune(
    network: SubspaceNetwork,
    rows: Rows,
    labels: np.ndarray,
    weights: np.ndarray,
    *,
    max_epochs: int,
    learning_rate: float,
    params: dict[str, Any] | None,
    device: str,
    seed: int,
    verbose: int,
) -> FineTuned:
    """Fine-tune the subset and the readout of a network, in place.

    By default it is AdamW without weight decay, cross entropy, batches of 50 and one cycle of the
    learning rate; a coordinate of the subspace learns ten times as fast as the readout. `params` are
    further arguments of :class:`skorch.NeuralNetClassifier`, which win over these. Callbacks are added
    to the default schedule; "callbacks__schedule": None takes that away.
    """
    from skorch.callbacks import LRScheduler

    from .tuner import Tuner

    dtype = network.W.dtype
    params = copy.deepcopy(params or {})  # callbacks keep a state
    for name, own in (("max_epochs", "max_epochs"), ("lr", "learning_rate")):
        if name in params:
            raise ValueError(
                f"Expected finetune_params without {name!r}: set the estimator's own {own} instead."
            )
    callbacks = list(params.pop("callbacks", None) or [])
    scheduled = params.pop("callbacks__schedule", True)
    rates = [learning_rate]
    if len(network.z):
        rates.insert(0, _SUBSPACE_RATE * learning_rate)
    together = partial(collate, rows.spec, dtype)  # which workers can be sent
    settings = {
        "criterion": nn.CrossEntropyLoss,
        "criterion__reduction": "none",
        "optimizer": torch.optim.AdamW,
        "optimizer__weight_decay": 0.0,
        "optimizer__param_groups": [("z", {"lr": rates[0]})] if len(network.z) else [],
        "lr": learning_rate,
        "max_epochs": max_epochs,
        "batch_size": _BATCH,
        "train_split": None,
        "iterator_train": ReadAhead,
        "iterator_train__shuffle": True,
        "iterator_train__generator": generator(seed, "batches"),
        "iterator_train__collate_fn": together,
        "iterator_train__num_workers": rows.n_workers,
        "iterator_valid__collate_fn": together,
        "iterator_valid__generator": generator(seed, "batches"),
        "classes": list(range(len(network.W))),
        "device": device,
        "verbose": verbose,
        **params,
    }
    tuner = Tuner(network, **settings).initialize()
    dataset = _Dataset(rows, labels, weights)
    if scheduled:
        learned, _ = tuner.get_split_datasets(dataset, labels)
        schedule = LRScheduler(
            policy=torch.optim.lr_scheduler.OneCycleLR,
            max_lr=rates,
            total_steps=max_epochs * len(tuner.get_iterator(learned, training=True)),
            cycle_momentum=bool({"momentum", "betas"} & set(tuner.optimizer_.defaults)),
            step_every="batch",
        )
        callbacks.insert(0, ("schedule", schedule))
    tuner.set_params(callbacks=callbacks).initialize_callbacks()
    # not tuner.fit, for which an interruption by the user is the end of training too
    tuner.notify("on_train_begin", X=dataset, y=labels)
    try:
        with kept_heap(device):
            tuner.fit_loop(dataset, labels)
    except KeyboardInterrupt:
        if not tuner.stopped_by_callback:
            raise
    tuner.notify("on_train_end", X=dataset, y=labels)
    z, W = (p.detach().cpu().clone() for p in (tuner.module_.z, tuner.module_.W))
    if not (z.isfinite().all() and W.isfinite().all()):
        raise FineTuningError(
            f"Fine-tuning diverged: parameters are NaN or infinite after {len(tuner.history)} epochs. "
            f"Lower learning_rate (it is {learning_rate:g}) or scale the inputs."
        )
    return FineTuned(z, W, _plain(tuner.history.to_list()))


def _plain(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a JSON file can hold of skorch's history, epoch by epoch."""
    numbers = [{k: v.item() if isinstance(v, np.generic) else v for k, v in e.items()} for e in history]
    return [{k: v for k, v in e.items() if isinstance(v, (int, float, str))} for e in numbers]
