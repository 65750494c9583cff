"""
Find wrong labels, forget them, and see what came of it
=======================================================

A thousand pictures of digits were labelled in a hurry, and one label in ten is wrong: a 3 was taken for
an 8, a 4 for a 9, a 1 for a 7. A model has learned them all. Which labels are wrong, and can the model
do without these pictures, although nobody wants to train it again?
"""

# %%
# The pictures that come with scikit-learn, and labels of which some are wrong. Mistakes without a habit
# would hardly cost any accuracy, because they cancel.
import argparse
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastntk_sk import FastNTKClassifier
from fastntk_sk.inspection import label_issues

parser = argparse.ArgumentParser()
parser.add_argument("--rows", type=int, default=1000, help="pictures to learn")
parser.add_argument("--pixels", type=int, default=32, help="pictures are enlarged to this side")
parser.add_argument("--dark", action="store_true", help="draw on a dark background")
parser.add_argument("--out", type=Path, default=Path(sys.argv[0]).with_suffix(".png"))
args = parser.parse_args()

X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
X_train, X_test, y_right, y_test = train_test_split(
    X, y, train_size=args.rows, random_state=0, stratify=y
)
taken_for = {3: 8, 4: 9, 1: 7}
candidates = np.flatnonzero(np.isin(y_right, list(taken_for)))
wrong = np.random.default_rng(0).choice(candidates, args.rows // 10, replace=False)
y_train = y_right.copy()
y_train[wrong] = [taken_for[digit] for digit in y_right[wrong]]


# %%
# EfficientNet-Lite0 with its ImageNet weights stays as it is; a ladder of readouts beside its blocks
# learns the pictures, in one pass.
def timed(what, call):
    print(f"{what} ... ", end="", flush=True)
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s")
    return result, seconds


clf = FastNTKClassifier(
    "tf_efficientnet_lite0", image_size=args.pixels, n_components=1024, random_state=0
)
_, seconds = timed(f"Learning {len(X_train):,} pictures", lambda: clf.fit(X_train, y_train))
lines = {"with the wrong labels": (clf.score(X_test, y_test), seconds)}

# %%
# What would the model say of each picture if it had never learned it? For a ladder this has an answer in
# closed form. Labels that the model without them disbelieves are doubtful.
issues, _ = timed("Looking for wrong labels", lambda: label_issues(clf, X_train, y_train))
doubtful = issues.indices
n_wrong = np.isin(doubtful, wrong).sum()
before = clf.predict(X_train[doubtful])

# %%
# Forget the doubtful pictures. No other picture is needed, and nothing is trained again. (In earnest,
# somebody looks at them first; :class:`~fastntk_sk.inspection.LabelIssuesDisplay` shows them, and
# :meth:`~fastntk_sk.FastNTKClassifier.rectify` learns them again with labels that were put right.)
_, seconds = timed(f"Forgetting {len(doubtful)} pictures", lambda: clf.unlearn(X_train[doubtful]))
lines["doubtful ones forgotten"] = clf.score(X_test, y_test), seconds
after = clf.predict(X_train[doubtful])

# %%
# A fit that never sees them gives the same model, at the price of a pass over all the others.
stay = np.setdiff1d(np.arange(len(X_train)), doubtful)
refit, seconds = timed(
    "Learning the others alone, to compare",
    lambda: FastNTKClassifier(**clf.get_params()).fit(X_train[stay], y_train[stay]),
)
lines["fitted again without them"] = refit.score(X_test, y_test), seconds

# %%
# What came of it.
right = len(doubtful) - n_wrong
change = 100 * (lines["doubtful ones forgotten"][0] - lines["with the wrong labels"][0])
reason = "" if change > 0 else ": too few of the wrong labels were found, or too many right ones went"
difference = np.abs(clf.readout_ - refit.readout_).max()
print(f"\n{n_wrong} of {len(wrong)} wrong labels were found and forgotten, with {right} that are right.")
print(f"Test accuracy changed by {change:+.1f} points{reason}.")
print(f"Largest parameter difference to a model that never learned them: {difference:.0e}.")
print(f"The receipt: {clf.receipts_[-1]['exactness']}\n")
print(f"{'model':<32}{'test accuracy':>14}{'seconds':>10}")
for name, (accuracy, seconds) in lines.items():
    print(f"{name:<32}{accuracy:>14.1%}{seconds:>10.1f}")

# %%
# The first of the forgotten pictures that the model now takes for something else, and its mistakes on
# pictures that no model has learned.
red, green, grey = "#e5534b", "#2da44e", "#8b949e"
if args.dark:
    plt.style.use(["dark_background", {"figure.facecolor": "#0d1117", "axes.facecolor": "#0d1117"}])
figure = plt.figure(figsize=(10, 4.6), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=[3, 2])

changed = np.flatnonzero(before != after)
above.suptitle(
    f"Of {len(doubtful)} forgotten pictures with doubtful labels, "
    f"the model reads {len(changed)} differently afterwards, such as these"
)
left, *axes = above.subplots(1, 9, width_ratios=[1.3] + [1] * 8)
for axis, width in zip((left, *axes), [1.3] + [1] * 8, strict=True):
    axis.set(xlim=(0, width), ylim=(-1, 1), xticks=[], yticks=[], frame_on=False, aspect="equal")
captions = {0.5: "green: right\nred: wrong", -0.2: "label", -0.5: "read before", -0.8: "read after"}
for height, text in captions.items():
    left.text(1.2, height, text, ha="right", va="center", color=grey)
for axis, place in zip(axes, changed, strict=False):
    row = doubtful[place]
    axis.imshow(X_train[row], cmap="gray", interpolation="bicubic", extent=(0, 1, 0, 1))
    for height, digit in ((-0.2, y_train[row]), (-0.5, before[place]), (-0.8, after[place])):
        colour = green if digit == y_right[row] else red
        axis.text(0.5, height, digit, ha="center", va="center", color=colour, size=15, weight="bold")

axis = below.subplots()
mistakes = [round(len(X_test) * (1 - accuracy)) for accuracy, _ in lines.values()]
bars = axis.barh(list(lines), mistakes, color=[red, green, grey], height=0.6)
told = [f"{n} ({accuracy:.1%} right)" for n, (accuracy, _) in zip(mistakes, lines.values(), strict=True)]
axis.bar_label(bars, told, padding=5)
axis.set(xlim=(0, 1.25 * max(mistakes)), xticks=[])
axis.set_title(f"mistakes on {len(X_test)} pictures that were never learned")
axis.invert_yaxis()
axis.spines[:].set_visible(False)
axis.tick_params(length=0)
figure.savefig(args.out, dpi=150)
print(f"\nPicture: {args.out.resolve()}")
