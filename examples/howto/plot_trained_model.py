"""
I have a trained model
======================

A network is trained already, in a plain torch loop, and now rows have to be forgotten. There are two
ways: learn again from the pretrained weights, which is exact, or linearise the trained weights, which
have seen the rows and keep what they remember.
"""

# %%
# EfficientNet-Lite0 learns 300 digits, 20 of them with a wrong label. Pictures are prepared as the
# library does: resized as a whole, and normalised as the pretrained weights need it.
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
order = rng.permutation(len(X))
X, X_test = X[order[:300]], X[order[300:800]]
y, y_test = y[order[:300]], y[order[300:800]]
forget, retain = slice(20), slice(20, None)
y_true, y = y, y.copy()
y[forget] = (y[forget] + rng.integers(1, 10, 20)) % 10


def prepare(pictures):
    """Return the batch of shape (n, 3, 64, 64) that enters the network."""
    resized = [Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC) for picture in pictures]
    return (torch.from_numpy(np.stack(resized) / 127.5 - 1)).float()[:, None].expand(-1, 3, -1, -1)


def train(X, y, epochs=8):
    """Train all weights, as anybody would."""
    torch.manual_seed(0)
    # what timm.create_model("tf_efficientnet_lite0", pretrained=True) downloads
    net = load_backbone("tf_efficientnet_lite0").net
    net.reset_classifier(10)
    net.requires_grad_().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    inputs, labels = prepare(X), torch.from_numpy(y)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(25):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def scores(net, X):
    return net(prepare(X)).numpy()


def timed(call):
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


net, seconds = timed(lambda: train(X, y))
print("trained", seconds, (scores(net, X_test).argmax(1) == y_test).mean(), (scores(net, X[forget]).argmax(1) == y[forget]).mean())
small = {"image_size": 64, "random_state": 0}
def ladder(part):
    return FastNTKClassifier("tf_efficientnet_lite0", n_components=1024, **small).fit(X[part], y[part], classes=range(10))
a, s = timed(lambda: ladder(slice(None)))
print("ladder", s, a.score(X_test, y_test), a.score(X[forget], y[forget]))
b, s = timed(lambda: FastNTKClassifier("tf_efficientnet_lite0", anchor=net, n_components=1024, **small).fit(X, y))
print("anchor", s, b.score(X_test, y_test), b.score(X[forget], y[forget]), b.linearity_, b._state.settings.target_scale)
batch = next(b._state.model.batches(b._rows(X[:4])))
print("prep", (batch - prepare(X[:4])).abs().max())
a2, s = timed(lambda: deepcopy(a).unlearn(X[forget]))
b2, sb = timed(lambda: deepcopy(b).unlearn(X[forget]))
print(s, sb, a2.score(X[forget], y[forget]), b2.score(X[forget], y[forget]), a2.score(X_test, y_test), b2.score(X_test, y_test))
oracle, s = timed(lambda: train(X[retain], y[retain]))
print("retrained", s, (scores(oracle, X_test).argmax(1) == y_test).mean(), (scores(oracle, X[forget]).argmax(1) == y[forget]).mean())
print(algebraic_gap(a2, ladder(retain)), algebraic_gap(b2, deepcopy(b2).rebuild(X[retain], y[retain])))
import fastntk_sk.state as S
S.State._start = lambda self: None
c = deepcopy(b); c._private = None
for alpha in (0.05, 0.25, 1, 4):
    c = FastNTKClassifier("tf_efficientnet_lite0", anchor=net, n_components=1024, alpha=alpha, **small).fit(X, y)
    c2=deepcopy(c).unlearn(X[forget])
    print("zero centre", alpha, c.score(X_test,y_test), c.score(X[forget], y[forget]), c2.score(X[forget], y[forget]), c2.score(X_test,y_test))
