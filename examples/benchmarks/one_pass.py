"""Rows of all linear models of `accuracy.py` from one forward pass of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.inputs import Rows
from fastntk_sk.tangents.ladder import Ladder
from fastntk_sk.tangents.model import LinearizedModel
from fastntk_sk.tangents.rungs import SIDES

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Linear:
    """A model whose classes read features that they share: its sums serve every alpha.

    Parameters
    ----------
    trainable : str

    k : int, default=4096
        Of a ladder's features.

    mirrored : bool, default=False
        Learn a picture and its mirror image with a weight of 1/2 each, and average scores over both.

    only : tuple of int, default=()
        Numbers of training rows to measure it at; () for all.
    """

    trainable: str
    k: int = 4096
    mirrored: bool = False
    only: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        if self.trainable == "head":
            return "head"
        return f"{self.trainable}, k = {self.k}" + (", mirrored" if self.mirrored else "")

    def classifier(self, backbone: object, pixels: int, seed: int) -> FastNTKClassifier:
        """Return the estimator that this is."""
        return FastNTKClassifier(
            backbone,
            trainable=self.trainable,
            n_components=self.k,
            image_size=pixels,
            random_state=seed,
        )

    def model(self, backbone: object, pixels: int, seed: int, n_classes: int) -> LinearizedModel:
        """Return what the estimator linearises: a function of no data."""
        estimator, classes = self.classifier(backbone, pixels, seed), np.arange(n_classes)
        blank = np.zeros((2, pixels, pixels, 3), np.uint8)
        return estimator.fit(blank, classes[:2], classes=classes)._adapter.model


class Activations(Ladder):
    """What the rungs of a ladder pool, as it is."""

    @staticmethod
    def root(pooled: Tensor) -> Tensor:
        return pooled


class OnePass:
    """The features of several linear models, in energy units, from the same forward passes.

    Parameters
    ----------
    models : mapping of Linear to LinearizedModel
        Of one network; their ladders, and the features of the head, take from now on what one ladder of
        both sides has seen.
    """

    def __init__(self, models: Mapping[Linear, LinearizedModel]) -> None:
        self.models = models
        first = next(iter(models.values()))
        probe = first.backbone.synthetic(2, 0, None, torch.float32)
        self._ladder = Activations(first.backbone.net, SIDES, probe)
        self._batch, self._pooled = probe[:0], list[Tensor]()
        for model in models.values():
            if model.ladder is None:
                model.ladder = lambda batch: self._seen(batch)[-1]
                continue
            slots = [i for i, r in enumerate(self._ladder.rungs) if r.side in model.ladder.sides]
            assert [self._ladder.rungs[i] for i in slots] == model.ladder.rungs
            model.ladder.pooled = partial(self._roots, [*slots, -1])

    def _seen(self, batch: Tensor) -> list[Tensor]:
        if not torch.equal(batch, self._batch):  # not another model's turn
            self._batch, self._pooled = batch, self._ladder.pooled(batch)
        return self._pooled

    def _roots(self, slots: list[int], batch: Tensor) -> list[Tensor]:
        pooled = self._seen(batch)
        return [Ladder.root(pooled[i]) for i in slots]

    @torch.no_grad()
    def __call__(self, X: np.ndarray, linears: list[Linear]) -> dict[Linear, Tensor]:
        """Return of some models features of shape (1 or 2, n, width + 1): mirror images last."""
        plain = self._features(X, linears)
        mirrored = [linear for linear in linears if linear.mirrored]
        flipped = self._features(X[:, :, ::-1], mirrored) if mirrored else {}
        return {
            linear: torch.stack([x, flipped[linear]] if linear.mirrored else [x])
            for linear, x in plain.items()
        }

    def _features(self, X: np.ndarray, linears: list[Linear]) -> dict[Linear, Tensor]:
        first = self.models[linears[0]]
        found: dict[Linear, list[Tensor]] = {linear: [] for linear in linears}
        for batch in first.batches(Rows(X, first.backbone.spec)):
            for linear, parts in found.items():
                parts.append(self.models[linear].tangents(batch)[0])
        return {linear: torch.cat(parts) for linear, parts in found.items()}
