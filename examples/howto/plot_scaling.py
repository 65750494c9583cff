"""
What grows with the rows, and what with the classes
===================================================

The published form of Fast-NTK solves a system of (rows x classes) unknowns and needs the retain set.
Sums over rows do neither: the same deletion, at a cost that does not depend on the rows that stay.
"""

# %%
# Digits through a fixed random network; forgetting 20 rows of more and more.
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier
from fastntk_sk.baselines import fast_ntk_dual

X, y = load_digits(return_X_y=True)
sizes = (50, 100, 200, 300)
ours, dual, gaps = [], [], []
for n in sizes:
    clf = FastNTKClassifier(n_components=128, random_state=0).fit(X[:n], y[:n])
    start = time.perf_counter()
    published = fast_ntk_dual(clf, X[20:n], y[20:n], X[:20], y[:20])
    dual.append(time.perf_counter() - start)
    start = time.perf_counter()
    clf.unlearn(X[:20])
    ours.append(time.perf_counter() - start)
    gaps.append(np.abs(published.decision_function(X) - clf.decision_function(X)).max())
print("largest difference between the two:", f"{max(gaps):.0e}")

# %%
# Tangents of the full kernel take a backward pass a class. With the pseudo kernel nothing grows with the
# number of classes, and a ladder, the default, needs no backward pass at all.
classes = (2, 10, 30, 100)
draws = np.random.default_rng(0)
points = draws.normal(size=(300, 20))
trained = {
    "norm layers, full kernel": {"trainable": "norm"},
    "norm layers, pseudo kernel, 3 directions": {"trainable": "norm", "kernel": "pseudo"},
    "ladder": {"trainable": "ladder"},
}
seconds = {name: [] for name in trained}
for n_classes in classes:
    labels = np.arange(300) % n_classes
    for name, params in trained.items():
        clf = FastNTKClassifier(**params, n_components=64, random_state=0)
        turns = []
        for _ in range(3):
            start = time.perf_counter()
            clf.fit(points, labels)
            turns.append(time.perf_counter() - start)
        seconds[name].append(np.median(turns))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.loglog(sizes, dual, "s-", color="tab:red", label="published dual form")
left.loglog(sizes, ours, "o-", color="tab:blue", label="sums: unlearn")
left.set(xlabel="rows learned", ylabel="seconds to forget 20 rows")
for (name, taken), colour in zip(seconds.items(), ("tab:orange", "tab:green", "tab:blue"), strict=True):
    right.loglog(classes, taken, "o-", color=colour, label=name)
right.set(xlabel="classes", ylabel="seconds to learn 300 rows")
for ax in (left, right):
    ax.grid(alpha=0.3)
    ax.legend()
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
