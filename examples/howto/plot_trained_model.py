"""
I have a trained model
======================

A network was trained in a plain torch loop, and now rows have to be forgotten. There are two ways: learn
again from the pretrained weights, which is exact, or take the trained weights as anchor, which have seen
the rows and keep some of what they remember.
"""

# %%
# EfficientNet-Lite0 learns 150 digits, of which 20 have a wrong label. Pictures are prepared as the
# library does it: resized as a whole, and normalised as the pretrained weights need it.
import sys
import time
from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.loading import load_backbone
from fastntk_sk.evaluation import algebraic_gap

rng = np.random.default_rng(0)
X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
rows = rng.permutation(len(X))[:450]
X, X_test, y, y_test = X[rows[:150]], X[rows[150:]], y[rows[:150]], y[rows[150:]]
y[:20] = (y[:20] + rng.integers(1, 10, 20)) % 10
X_forget, y_forget, X_retain, y_retain = X[:20], y[:20], X[20:], y[20:]
SIDE = 32


def prepare(pictures):
    """Return what enters the network, of shape (n, 3, SIDE, SIDE)."""
    resized = [Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in pictures]
    return (torch.from_numpy(np.stack(resized)) / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def train(X, y, epochs=8):
    """Train all weights, as anybody would."""
    torch.manual_seed(0)
    net = load_backbone("tf_efficientnet_lite0").net  # of timm, with its pretrained weights
    net.reset_classifier(10)
    net.requires_grad_().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    inputs, labels = prepare(X), torch.from_numpy(y)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(20):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def scores(net, X):
    """Return centred scores: a constant that is added to those of all classes says nothing."""
    found = net(prepare(X)) if isinstance(net, torch.nn.Module) else net.decision_function(X)
    found = np.asarray(found)
    return found - found.mean(axis=1, keepdims=True)


def measured(name, call, *arguments):
    """Return what a call returns, and print its seconds, its accuracy, and the wrong labels it knows."""
    start = time.perf_counter()
    model = call(*arguments)
    seconds = time.perf_counter() - start
    accuracy, kept = (
        np.mean(scores(model, A).argmax(1) == b) for A, b in ((X_test, y_test), (X_forget, y_forget))
    )
    table[name] = (100 * accuracy, 100 * kept, seconds)
    print(f"{name:<32} held-out {accuracy:6.1%}   wrong labels kept {kept:4.0%}   {seconds:5.1f} s")
    return model


table = {}
net = measured("trained network", train, X, y)
settings = {"image_size": SIDE, "n_components": 256, "random_state": 0}

# %%
# Learn again, exactly: a ladder on the pretrained network, which has not seen the rows. What it forgets
# is gone, as in a fit without the rows.
ladder = measured("learn again", FastNTKClassifier("tf_efficientnet_lite0", **settings).fit, X, y)
forgot = measured("learn again, forgotten", deepcopy(ladder).unlearn, X_forget)
refit = FastNTKClassifier("tf_efficientnet_lite0", **settings).fit(X_retain, y_retain)
print("gap to a fit without the rows:", algebraic_gap(forgot, refit))
print(forgot.receipts_[-1]["exactness"])

# %%
# The trained network as anchor: a pass over the rows, and a solve that starts from its weights. A
# deletion is that of a solve without the rows at the same anchor. But the anchor has seen them.
anchored = FastNTKClassifier("tf_efficientnet_lite0", anchor=net, **settings)
anchored = measured("as anchor", anchored.fit, X, y)
approximate = measured("as anchor, forgotten", deepcopy(anchored).unlearn, X_forget)
same = deepcopy(approximate).rebuild(X_retain, y_retain)
print("gap to a solve without the rows at this anchor:", algebraic_gap(approximate, same))
print(approximate.receipts_[-1]["exactness"])

# %%
# What a deletion should be: the same loop, without the rows.
retrained = measured("trained without the rows", train, X_retain, y_retain)
expected = scores(retrained, X_test)
for name, model in (("before", anchored), ("after", approximate)):
    distance = np.linalg.norm(scores(model, X_test) - expected) / np.linalg.norm(expected)
    print(f"distance of the anchored model to it {name} forgetting: {distance:.2f}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained", sharey=True)
titles = ("accuracy on held-out digits, %", "wrong labels still known, %", "seconds")
colours = ["0.6", "C0", "C0", "C1", "C1", "0.6"]
for ax, values, title in zip(axes, zip(*table.values(), strict=True), titles, strict=True):
    bars = ax.barh(list(table), values, color=colours)
    ax.bar_label(bars, fmt="%.0f" if "%" in title else "%.1f", padding=3)
    ax.set_title(title)
    ax.margins(x=0.18)
axes[0].invert_yaxis()
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
