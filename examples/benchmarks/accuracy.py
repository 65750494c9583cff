"""Accuracy of the linearised model against its linear probe and SGD on the same parameters.

Fashion-MNIST at 64 px through lite0, three draws of training and test images. All
hyper-parameters, of the opponents too, are chosen on 2,000 held-out training images, with another
draw of training images; the test images are read once, at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json

import numpy as np
import torch
from _common import CACHE, fashion_mnist, linearized, publish, table
from torch import nn
from torch.func import functional_call

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones import load_backbone
from fastntk_sk.ledger import Ledger
from fastntk_sk.preprocessing import Rows
from fastntk_sk.state import Frozen, State
from fastntk_sk.subsets import select

BACKBONE, PIXELS = "tf_efficientnet_lite0", 64
COMPONENTS = (2048, 4096, 8192)
ALPHAS, TANGENT_SCALES = (0.1, 0.25, 0.5, 1.0, 2.0), (0.5, 1.0, 2.0)
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SIZES = (1000, 3000)
EPOCHS = 15
CHOICE = CACHE / "accuracy-choice.json"


def learn(X, y):
    """Return for each k a state with the statistics of the rows.

    One pass serves all k: a batch's Jacobians are computed once and projected three times. The
    statistics serve every alpha and tangent_scale.
    """
    frozen = Frozen(
        0,
        alpha=1.0,
        tangent_scale=1.0,
        target_scale=1.0,
        anchor="pretrained",
        network=False,
        device="cpu",
    )
    learned = {}
    for k in COMPONENTS:
        model = linearized(BACKBONE, pixels=PIXELS, n_components=k)
        learned[k] = dataclasses.replace(
            State.empty(model, frozen, Ledger(), ""), class_rows=np.ones(10, dtype=np.int64)
        )
    return extend(learned, X, y)


def extend(learned, X, y):
    """Add rows to the statistics of every k."""
    model = learned[COMPONENTS[0]].model
    rows, labels = list(Rows(X, model.backbone.spec)), torch.from_numpy(y)
    for start in range(0, len(y), 32):
        batch = model.backbone.spec.normalise(rows[start : start + 32], torch.float32)
        h, J = model.tangent.jacobian(batch, model.readout)
        h = torch.cat([h, torch.ones(len(h), 1)], dim=1)
        for state in learned.values():
            own = state.model
            projected = own.projection.project(J.flatten(0, 1)).unflatten(0, J.shape[:2])
            state.statistics.add(
                h / own.scale_h, projected / own.scale_J, labels[start : start + 32], torch.ones(len(h))
            )
    return learned


def with_ridge(state, alpha, tangent_scale):
    """Solve a state for given hyper-parameters."""
    solved = state.resolved(alpha=alpha, tangent_scale=tangent_scale)
    return FastNTKClassifier(BACKBONE)._commit(solved, np.arange(10))


def sgd(X, y, rate, epochs=EPOCHS, seed=0, pixels=PIXELS, score_on=None):
    """Fine-tune the norm parameters and the readout: AdamW, one cycle, batches of 50."""
    backbone = load_backbone(BACKBONE, image_size=pixels)
    names = select(backbone.net, "norm").names
    theta = {n: nn.Parameter(backbone.net.get_parameter(n).detach().clone()) for n in names}
    draws = torch.Generator().manual_seed(seed)
    W = nn.Parameter(torch.zeros(10, 1281))
    optimiser = torch.optim.AdamW([W, *theta.values()], lr=rate, weight_decay=0)
    steps = epochs * -(-len(y) // 50)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    pixels_of = list(Rows(X, backbone.spec))
    labels = torch.from_numpy(y)

    def logits(batch):
        x = backbone.spec.normalise([pixels_of[i] for i in batch], torch.float32)
        h = functional_call(backbone.net, theta, (x,))
        return h @ W[:, :-1].T + W[:, -1]

    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=draws).split(50):
            loss = nn.functional.cross_entropy(logits(batch.tolist()), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    if score_on is None:
        return None
    pixels_of = list(Rows(score_on[0], backbone.spec))
    with torch.no_grad():
        found = torch.cat([logits(b) for b in torch.arange(len(pixels_of)).split(50)]).argmax(1)
    return float((found.numpy() == score_on[1]).mean())


def choose(X, y, validation):
    """Return the best hyper-parameters of each contestant on the held-out training images."""
    if CHOICE.exists():  # an interrupted run goes on
        return {
            n: tuple(v) if isinstance(v, list) else v for n, v in json.loads(CHOICE.read_text()).items()
        }
    chosen, grid = {}, list(itertools.product(ALPHAS, TANGENT_SCALES))
    learned = learn(X, y)
    for k in COMPONENTS:
        scores = {g: with_ridge(learned[k], *g).score(*validation) for g in grid}
        chosen[f"norm, k = {k}"] = max(grid, key=scores.__getitem__)
        print(k, scores, flush=True)
    probes = {a: with_ridge(learned[COMPONENTS[0]], a, 0.0).score(*validation) for a in ALPHAS}
    chosen["linear probe"] = (max(ALPHAS, key=probes.__getitem__), 0.0)
    print("probe", probes, flush=True)
    rates = {rate: sgd(X, y, rate, score_on=validation) for rate in RATES}
    print("sgd", rates, flush=True)
    chosen["SGD, 15 epochs"] = max(RATES, key=rates.__getitem__)
    CHOICE.parent.mkdir(parents=True, exist_ok=True)
    CHOICE.write_text(json.dumps(chosen))
    return chosen


def measure(X, y, test, chosen):
    """Return test accuracy by number of training images and contestant."""
    found = {}
    learned = learn(X[: SIZES[0]], y[: SIZES[0]])
    for start, size in zip((0, *SIZES), SIZES, strict=False):
        if start:
            extend(learned, X[start:size], y[start:size])
        for k in COMPONENTS:
            name = f"norm, k = {k}"
            found[size, name] = with_ridge(learned[k], *chosen[name]).score(*test)
        probe = with_ridge(learned[COMPONENTS[0]], *chosen["linear probe"])
        found[size, "linear probe"] = probe.score(*test)
    for size in SIZES:
        rate = chosen["SGD, 15 epochs"]
        found[size, "SGD, 15 epochs"] = sgd(X[:size], y[:size], rate, score_on=test)
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    X, y, X_test, y_test = fashion_mnist()
    order = np.random.default_rng(0).permutation(len(X))
    held_out, rest = order[:2000], order[2000:]
    first = rest[:3000]
    chosen = choose(X[first], y[first], (X[held_out], y[held_out]))
    results = []
    for draw in range(args.draws):
        rows = rest[3000 * (draw + 1) : 3000 * (draw + 2)]
        tests = np.random.default_rng(100 + draw).permutation(len(X_test))[:2000]
        results.append(measure(X[rows], y[rows], (X_test[tests], y_test[tests]), chosen))

    def summary(values):
        values = 100 * np.asarray(values)
        return f"{values.mean():.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"

    lines = []
    for size in SIZES:
        for name in ("linear probe", *(f"norm, k = {k}" for k in COMPONENTS), "SGD, 15 epochs"):
            mine = np.array([r[size, name] for r in results])
            probe = np.array([r[size, "linear probe"] for r in results])
            other = np.array([r[size, "SGD, 15 epochs"] for r in results])
            setting = chosen[name]
            if isinstance(setting, tuple):
                setting = "alpha {}, tangent_scale {}".format(*setting)
            else:
                setting = f"learning rate {setting}"
            lines.append(
                [size, name, setting, summary(mine), summary(mine - probe), summary(mine - other)]
            )
    header = ["images", "model", "chosen on held-out rows", "test %", "minus probe", "minus SGD"]
    text = (
        f"Test accuracy in percent, mean and standard error over {args.draws} draws of training and "
        "of 2,000 test images; differences are paired by draw.\n\n" + table(header, lines)
    )
    publish("accuracy", text)


if __name__ == "__main__":
    main()
