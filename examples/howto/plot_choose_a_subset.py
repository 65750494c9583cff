"""
Choose what is trained
======================

What is trained decides accuracy, time and the size of the statistics. Try the ladder, which is the
default, and the subsets of a recipe on validation rows.
"""

# %%
# 150 digits for training, 150 for validation, through EfficientNet-Lite0 at 32 pixels.
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastntk_sk import FastNTKClassifier, load_recipe

X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
X_train, X_val, y_train, y_val = train_test_split(X, y, train_size=150, test_size=150, random_state=0)
recipe = load_recipe("tf_efficientnet_lite0")
print(dict(recipe.trainable))

# %%
# "ladder" reads all blocks of the frozen network in one forward pass, "head" its last features alone: a
# linear probe. The sums choose the ridge of both. "norm" and "bias" move the features instead, which
# costs a backward pass for each class; with the pseudo kernel the number of classes does not matter.
tangents = {"n_components": 256, "alpha": 0.05}
candidates = {
    "head": {"trainable": "head"},
    "ladder": {"n_components": 1024},
    "bias": {"trainable": "bias", **tangents},
    "norm": {"trainable": "norm", **tangents},
    "norm, pseudo kernel": {"trainable": "norm", "kernel": "pseudo", **tangents},
}
accuracy, seconds, megabytes = {}, {}, {}
for name, arguments in candidates.items():
    clf = FastNTKClassifier(recipe.name, **arguments, image_size=32, random_state=0)
    start = time.perf_counter()
    clf.fit(X_train, y_train)
    seconds[name] = time.perf_counter() - start
    accuracy[name] = clf.score(X_val, y_val)
    megabytes[name] = clf._state.statistics.n_bytes(*clf._state.model.sizes, 10) / 2**20
    print(f"{name:<20} {accuracy[name]:.1%}  {seconds[name]:5.1f} s  {megabytes[name]:6.0f} MiB")

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
panels = (
    ({name: 100 * value for name, value in accuracy.items()}, "validation accuracy, %"),
    (seconds, "seconds to fit"),
    (megabytes, "statistics, MiB"),
)
for ax, (values, title) in zip(axes, panels, strict=True):
    bars = ax.barh(list(values), list(values.values()), color=["0.7", "C3", "C0", "C1", "C2"])
    ax.bar_label(bars, fmt="%.1f", padding=3)
    ax.set_title(title)
    ax.margins(x=0.18)
    ax.invert_yaxis()
axes[0].set_xlim(left=100 * min(accuracy.values()) - 5)
for ax in axes[1:]:
    ax.set_yticklabels([])
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
