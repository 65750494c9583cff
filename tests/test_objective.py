"""The documented objective (docs/user_guide/concepts.md), in raw quantities, is what a fit minimises."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from torch.func import functional_call, jvp

from fastntk_sk import FastNTKClassifier

S, TARGET = 2.0, 1.5


class Normed(torch.nn.Module):
    """A small user module with a norm layer between two linear ones."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = torch.nn.Linear(4, 6), torch.nn.LayerNorm(6)
        self.last = torch.nn.Linear(6, 5)
        draws = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_(generator=draws)

    def forward(self, x):
        return self.last(torch.nn.functional.gelu(self.norm(self.first(x))))


def objective(clf, X, y, w):
    """Return the documented model and objective of the readout and z, and both as they were fitted."""
    model = clf._state.model  # no public attribute holds Q and the units
    x = torch.cat([*model.batches(list(X.astype(np.float32)))])
    t = TARGET * (torch.eye(3, dtype=x.dtype)[torch.from_numpy(y)] - 1 / 3)
    net, subset, Q = model.backbone.net, model.tangent.subset, model.projection
    anchor = {name: net.get_parameter(name).detach() for name in subset.names}
    with torch.no_grad():
        h = net(x) if model.ladder is None else model.ladder(x)
    slopes = [  # of the features that the probe directions read, along every column of Q
        jvp(lambda theta: functional_call(net, theta, (x,)), (anchor,), (subset.split(Q.expand(e)),))[1]
        for e in torch.eye(Q.k, dtype=x.dtype)
    ]
    J = (
        torch.stack([slope @ model.directions.T for slope in slopes], -1)
        if slopes
        else h.new_zeros(len(h), 3, 0)
    )
    phi = h[:, :0]
    if clf.kernel == "pseudo":
        phi, J = J.flatten(1) / len(model.directions) ** 0.5, h.new_zeros(len(h), 3, 0)
    shared = torch.cat([h, phi, h.new_ones(len(h), 1)], 1)
    ridge = torch.full((shared.shape[1],), model.scale_h**2, dtype=x.dtype)
    ridge[h.shape[1] : -1] = model.scale_J**2 / S
    if not slopes:
        ridge[-1] = 0
    # the fine-tuned anchor is at theta_0 + Q moved, and z = 0 at theta_0
    moved = h.new_zeros(J.shape[-1]) if model.moved is None else model.moved

    def scores(W, z):
        return shared @ W.T + J @ (z - moved)

    def loss(W, z):
        errors = (scores(W, z) - t).square().sum(1)
        penalty = (ridge * W.square()).sum() + model.scale_J**2 / S * z.square().sum()
        return torch.from_numpy(w) @ errors + clf.alpha_ * penalty

    displacement = torch.from_numpy(clf.displacement_)
    z = Q.project(displacement[None])[0] if len(displacement) else displacement
    if len(displacement):
        torch.testing.assert_close(Q.expand(z), displacement)
    return scores, loss, torch.from_numpy(clf.readout_), z


CASES = {
    "head": {"trainable": "head"},
    "head of a module": {"backbone": Normed, "trainable": "head", "alpha": 0.3},
    "ladder": {"trainable": "ladder", "n_components": 16, "alpha": 0.3},
    "full": {"backbone": Normed, "trainable": "norm"},
    "full in a subspace": {"trainable": "norm", "n_components": 20},
    "full beside a ladder": {"trainable": ("ladder", "norm"), "n_components": 20},
    "finetuned": {"anchor": "finetuned", "trainable": "norm", "n_components": 20, "max_epochs": 3},
    "trained": {"anchor": torch.nn.Sequential(Normed(), torch.nn.Linear(5, 3)), "n_components": 9},
    "pseudo": {"backbone": Normed, "kernel": "pseudo", "trainable": "norm", "n_components": 5},
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_the_documented_objective_vanishes(case):
    X, y = (part[::3] for part in load_iris(return_X_y=True))
    w = np.linspace(0.5, 2, len(y))
    params = {"tangent_scale": S, "target_scale": TARGET, "precision": "float64", "random_state": 0}
    params |= {"predict_with": "linear"} | CASES[case]
    clf = FastNTKClassifier(**params).fit(X, y, sample_weight=w)
    scores, loss, *solution = objective(clf, X, y, w)
    np.testing.assert_allclose(clf.decision_function(X), scores(*solution), atol=1e-7)
    for part, elsewhere in zip(
        torch.func.grad(loss, (0, 1))(*solution),
        torch.func.grad(loss, (0, 1))(*(torch.zeros_like(part) for part in solution)),
        strict=True,
    ):
        assert part.norm() <= 1e-6 * elsewhere.norm()
