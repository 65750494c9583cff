"""The opponents of `accuracy.py`: SGD of norm layers, of a ladder too, of all weights, of prompts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fastntk_sk.backbones.inputs import Rows
from fastntk_sk.backbones.loading import Backbone, load_backbone
from fastntk_sk.tangents.ladder import Ladder
from fastntk_sk.tangents.rungs import SIDES
from fastntk_sk.tangents.subsets import insert_prompts, select

BATCH, PROMPTS = 50, 10
OF_CNN = ("norm", "ladder + norm", "all weights", "all weights, mirrored")
OF_VIT = ("prompts", "norm")


def train(
    kind: str,
    backbone: str,
    pixels: int,
    X: np.ndarray,
    y: np.ndarray,
    *,
    rate: float,
    epochs: int = 15,
    seed: int = 0,
    batch_norm: str = "frozen",
) -> Classifier:
    """Fit by AdamW without weight decay, one cycle of the learning rate, batches of 50.

    `batch_norm` is "frozen" (running statistics as pretrained) or "running". Mirrored means that each
    picture is flipped with probability 1/2 each time, and that scores are averaged over both at the end.
    """
    draws = torch.Generator().manual_seed(seed)
    classifier = Classifier(kind, backbone, pixels, int(y.max()) + 1)
    parameters = classifier.parameters_to_train()
    classifier.net.train(batch_norm == "running")
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0)
    steps = epochs * -(-len(y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    inputs, labels = classifier.inputs(X), torch.from_numpy(y)
    for _ in range(epochs):
        for chosen in torch.randperm(len(y), generator=draws).split(BATCH):
            batch = classifier.normalised(inputs[chosen.numpy()])
            if classifier.mirrored:
                flipped = torch.rand(len(batch), generator=draws) < 0.5
                batch = torch.where(flipped[:, None, None, None], batch.flip(-1), batch)
            loss = nn.functional.cross_entropy(classifier(batch), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return classifier.eval()


class SmoothLadder(Ladder):
    """The ladder of trainable="ladder" with a root whose slope at zero is finite."""

    @classmethod
    def of(cls, backbone: Backbone) -> SmoothLadder:
        """Return the ladder of a backbone, with its units and a sketch of 4,096 features."""
        synthetic = backbone.synthetic(100, 0, None, torch.float32)
        ladder = cls(backbone.net, SIDES, synthetic[:2])
        with torch.no_grad():
            ladder.calibrate([synthetic])
        ladder.draw_sketch(4096, seed=0)
        return ladder

    @staticmethod
    def root(pooled: Tensor) -> Tensor:
        """Return the signed square root, rounded off near zero."""
        return pooled * (pooled.square() + 1e-6).pow(-0.25)


class Classifier(nn.Module):
    """A backbone, perhaps with a ladder, and a readout that starts at zero."""

    def __init__(self, kind: str, backbone: str, pixels: int, n_classes: int) -> None:
        super().__init__()
        loaded = load_backbone(backbone, image_size=pixels)
        self.kind, self.spec, self.net = kind, loaded.spec, loaded.net
        self.mirrored = kind.endswith("mirrored")
        if kind.startswith("ladder"):
            self.net = SmoothLadder.of(loaded)
        if kind == "prompts":
            draws = torch.Generator().manual_seed(0)
            insert_prompts(self.net, PROMPTS, deep=False, generator=draws)
        with torch.no_grad():
            d = self.net(loaded.synthetic(2, 0, None, torch.float32)).shape[1]
        self.readout = nn.Linear(d, n_classes)
        for parameter in self.readout.parameters():
            nn.init.zeros_(parameter)

    def parameters_to_train(self) -> list[nn.Parameter]:
        """Return the parameters of this kind, asking for gradients."""
        self.requires_grad_(False)
        chosen = list(self.readout.parameters())
        if self.kind.startswith("all"):
            chosen += self.net.parameters()
        else:
            trainable = "prompt" if self.kind == "prompts" else "norm"
            chosen += [self.net.get_parameter(name) for name in select(self.net, trainable).names]
        for parameter in chosen:
            parameter.requires_grad_()
        return chosen

    def inputs(self, X: np.ndarray) -> np.ndarray:
        """Return resized pixels."""
        return np.stack(list(Rows(X, self.spec)))

    def normalised(self, pixels: np.ndarray) -> Tensor:
        """Return the batch that enters the network."""
        return self.spec.normalise(pixels, torch.float32)

    def forward(self, batch: Tensor) -> Tensor:
        """Return scores."""
        return self.readout(self.net(batch))

    @torch.no_grad()
    def score(self, X: np.ndarray, y: np.ndarray) -> float:
        """Return the accuracy."""
        right = 0
        for start in range(0, len(y), 200):
            batch = self.normalised(self.inputs(X[start : start + 200]))
            scores = self(batch) + (self(batch.flip(-1)) if self.mirrored else 0)
            right += int((scores.argmax(1).numpy() == y[start : start + 200]).sum())
        return right / len(y)
