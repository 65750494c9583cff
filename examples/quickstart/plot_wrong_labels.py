"""
Find wrong labels, and put them right
=====================================

A thousand pictures were labelled in a hurry, and one label in ten is wrong: a 3 was taken for an 8, a 4
for a 9, a 1 for a 7. Which ones? What would the model say of each picture if it had never learned it?
That is what :func:`~fastntk_sk.inspection.label_issues` asks, for all pictures at once. Then `unlearn`
forgets the wrong rows, or `rectify` puts them right, and neither needs a new fit.
"""

# %%
# Pictures of digits, and labels of which a tenth is wrong. (Mistakes without a habit would hardly cost
# any accuracy: they cancel.) With ``keep="features"`` the backbone sees each picture once, and what
# follows is cheap.
import copy
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier
from fastntk_sk.inspection import LabelIssuesDisplay, label_issues

X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
X_train, right, X_test, y_test = X[:1000], y[:1000], X[1000:], y[1000:]
taken_for = {3: 8, 4: 9, 1: 7}
of_three = np.flatnonzero(np.isin(right, list(taken_for)))
wrong = np.random.default_rng(0).choice(of_three, 100, replace=False)
labels = right.copy()
labels[wrong] = [taken_for[digit] for digit in right[wrong]]

clf = FastNTKClassifier(
    "tf_efficientnet_lite0", image_size=32, n_components=1024, keep="features", random_state=0
).fit(X_train, labels)

# %%
# The rows whose label the model without them disbelieves, the most doubtful first.
issues = label_issues(clf, X_train, labels)
found = np.isin(issues.indices, wrong)
print(f"{len(found)} labels are doubtful; {found.sum()} of them are among the 100 wrong ones")

# %%
# Somebody looks at them. Each picture is shown with its label, and with what it seems to be.
display = LabelIssuesDisplay.from_predictions(X_train, labels, issues, n_images=40)
display.figure_.suptitle("The forty most doubtful labels: learned as, and what it seems to be")
display.figure_.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)

# %%
# Forget them, or learn them again with the labels that they should have: one solve each, with a receipt.
doubtful = X_train[issues.indices]
forgotten = copy.deepcopy(clf).unlearn(doubtful)
rectified = copy.deepcopy(clf).rectify(doubtful, right[issues.indices])
print(rectified.receipts_[-1]["exactness"])

# %%
# Accuracy on pictures that nobody has learned, beside that of a model of clean labels.
ideal = FastNTKClassifier(**clf.get_params()).fit(X_train, right)
for name, model in {
    "a tenth of the labels wrong": clf,
    "doubtful rows forgotten": forgotten,
    "doubtful rows put right": rectified,
    "clean labels": ideal,
}.items():
    print(f"{model.score(X_test, y_test):6.1%}  {name}")
