"""
Choose the ridge and the weight of the tangents
===============================================

``alpha`` and ``tangent_scale`` do not change the Jacobians, and a fit needs the rows only through sums:
``FastNTKClassifierCV`` subtracts a fold's rows from the sums instead of fitting again. The answer is
that of ``GridSearchCV``.
"""

# %%
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV, unlearn

X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
rows = np.random.default_rng(0).permutation(len(X))
train, test = rows[:200], rows[200:400]
alphas, scales = (0.01, 0.03, 0.1, 0.3), (0.0, 0.25, 1.0)
clf = FastNTKClassifier("tf_efficientnet_lite0", image_size=32, n_components=256, random_state=0)

# %%
# 12 candidates, 3 folds, one pass.
start = time.perf_counter()
search = FastNTKClassifierCV(clf, alphas=alphas, tangent_scales=scales, cv=3)
search.fit(X[train], y[train])
print(f"{time.perf_counter() - start:.1f} s, best: {search.best_params_}")
print(f"test accuracy {search.score(X[test], y[test]):.1%}")

# %%
# What was found can forget; the receipt tells that a search has seen the rows.
unlearn(search, X[train[:3]])
print(search.best_estimator_.receipts_[-1]["searched_by"])

# %%
scores = 100 * search.cv_results_["mean_test_score"].reshape(len(alphas), len(scales))
figure, ax = plt.subplots(figsize=(6, 4.4), layout="constrained")
picture = ax.imshow(scores, cmap="viridis")
for (i, j), score in np.ndenumerate(scores):
    dark = score < scores.mean()
    ax.text(j, i, f"{score:.1f}", ha="center", va="center", color="white" if dark else "black")
ax.set(
    xticks=range(len(scales)),
    xticklabels=["0 (probe)", *scales[1:]],
    yticks=range(len(alphas)),
    yticklabels=alphas,
    xlabel="tangent_scale",
    ylabel="alpha",
    title="accuracy on held-out rows, %",
)
figure.colorbar(picture)
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
