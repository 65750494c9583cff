"""
Forget 50 rows without retraining
=================================

Handwritten digits go through EfficientNet-Lite0 with its ImageNet weights. Some training labels are
wrong; the rows that hold them are forgotten in closed form, together with others, and the result is
compared with a refit that never saw them.
"""

# %%
# 900 digits, of which 25 get a wrong label.
import argparse
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastntk_sk import FastNTKClassifier

parser = argparse.ArgumentParser()
parser.add_argument("--rows", type=int, default=900, help="training images")
parser.add_argument("--pixels", type=int, default=64, help="images are enlarged to this side")
parser.add_argument("--out", type=Path, default=Path(sys.argv[0]).with_suffix(".png"))
args = parser.parse_args()

X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=args.rows, test_size=400, random_state=0, stratify=y
)
rng = np.random.default_rng(0)
forget = rng.choice(args.rows, size=50, replace=False)
mislabelled = forget[:25]
y_given = y_train.copy()
y_given[mislabelled] = (y_given[mislabelled] + rng.integers(1, 10, 25)) % 10
retain = np.setdiff1d(np.arange(args.rows), forget)


# %%
# Fit, forget, and refit without the rows. All classes are still there, so that the refit is the
# model that deletion promises.
def make():
    return FastNTKClassifier(
        "tf_efficientnet_lite0",
        image_size=args.pixels,
        n_components=1024,
        random_state=0,
        verbose=1,
    )


def timed(call):
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def accuracies(clf):
    """Accuracy on retained and forgotten rows (labels as given) and on test rows."""
    return [
        clf.score(X_train[retain], y_given[retain]),
        clf.score(X_train[forget], y_given[forget]),
        clf.score(X_test, y_test),
    ]


clf = make().fit(X_train, y_given)
before, guess_before = accuracies(clf), clf.predict_proba(X_train[mislabelled])
_, seconds = timed(lambda: clf.unlearn(X_train[forget]))
after, guess_after = accuracies(clf), clf.predict_proba(X_train[mislabelled])
refit, refit_seconds = timed(lambda: make().fit(X_train[retain], y_given[retain]))

# %%
# The result is that of the refit, at a fraction of its price.
difference = np.abs(clf.readout_ - refit.readout_).max()
print(f"\n{'accuracy on':<16}{'retain':>8}{'forget':>8}{'test':>8}{'seconds':>9}")
for name, scores, took in (
    ("before", before, ""),
    ("after unlearn", after, f"{seconds:.1f}"),
    ("refit", accuracies(refit), f"{refit_seconds:.1f}"),
):
    print(f"{name:<16}" + "".join(f"{100 * s:7.1f}%" for s in scores) + f"{took:>9}")
print(f"largest parameter difference to the refit: {difference:.1e}")
print(f"how exact the receipt says it is: {clf.receipts_[-1]['exactness']}")

# %%
# What the mislabelled pictures were taken for, before and after.
figure, axes = plt.subplots(3, 8, figsize=(12, 6.2), height_ratios=[1, 1, 1], layout="constrained")
for column, row in enumerate(mislabelled[:8]):
    picture, *bars = axes[:, column]
    picture.imshow(X_train[row], cmap="gray_r")
    picture.set_title(f"a {y_train[row]}, labelled {y_given[row]}", fontsize=10)
    picture.axis("off")
    for axis, guess, when in zip(bars, (guess_before, guess_after), ("before", "after"), strict=True):
        colours = ["lightgrey"] * 10
        colours[y_given[row]], colours[y_train[row]] = "tab:red", "tab:green"
        axis.bar(range(10), guess[column], color=colours)
        axis.set(ylim=(0, 1), xticks=range(10), yticks=[])
        axis.tick_params(labelsize=7)
        if column == 0:
            axis.set_ylabel(f"{when} unlearn")
figure.suptitle(
    "Forgotten rows with wrong labels: scores for the given label (red) and the true digit (green)"
)
figure.savefig(args.out, dpi=110)
print(f"picture: {args.out}")
