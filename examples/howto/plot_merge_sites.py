"""
Sites that may not share pictures
=================================

Three hospitals learn alone. States travel, pictures do not: the sum of the sums is the model that
one fit on all pictures would have given. Each part keeps its own ledger, so that each can still forget.
"""

# %%
# Every site must use the same backbone, seed and classes; nothing else is agreed upon.
import sys
from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastntk_sk import FastNTKClassifier

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y, train_size=1000, random_state=0)
classes = np.arange(10)
order = np.argsort(y, kind="stable")  # the sites see different digits
sites = {"A": order[:300], "B": order[300:630], "C": order[630:]}


def learn(rows):
    clf = FastNTKClassifier(n_components=128, random_state=0)
    return clf.partial_fit(X[rows], y[rows], classes=classes)


alone = {name: learn(rows) for name, rows in sites.items()}

# %%
# What travels are the saved states. They are private among the sites: sums of few rows can be inverted,
# and whoever has a ledger with its key can test whether a picture that they have was learned.
merged = deepcopy(alone["A"]).merge([alone["B"], alone["C"]])
together = learn(order)
difference = np.abs(merged.decision_function(X_test) - together.decision_function(X_test)).max()
print(f"merged against one fit on all rows: {difference:.0e}")

# %%
# A person of site B asks to be forgotten, after the merge.
merged.unlearn(X[sites["B"][:3]])
print(merged.receipts_[-1]["exactness"], "-", merged.n_samples_learned_, "rows are left")

# %%
figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
models = {f"site {name}": clf for name, clf in alone.items()} | {"merged": merged}
for i, (name, clf) in enumerate(models.items()):
    found = clf.predict(X_test)
    recall = [100 * np.mean(found[y_test == digit] == digit) for digit in classes]
    ax.bar(classes + 0.2 * (i - 1.5), recall, 0.2, label=f"{name}: {clf.score(X_test, y_test):.0%}")
ax.set(xticks=classes, xlabel="digit", ylabel="recall on test rows, %", ylim=(0, 125))
ax.legend(ncols=4, loc="upper center")
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
