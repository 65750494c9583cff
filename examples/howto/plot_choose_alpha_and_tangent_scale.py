"""
Choose the ridge and the weight of the tangents
===============================================

With a ladder, the sums choose the ridge by themselves. Where tangents are trained there are two
parameters to choose, ``alpha`` and ``tangent_scale``. They do not change the Jacobians, and a fit needs
the rows only through sums: ``FastNTKClassifierCV`` subtracts a fold's rows from the sums instead of
fitting again. The answer is that of ``GridSearchCV``.
"""

# %%
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV

X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
rows = np.random.default_rng(0).permutation(len(X))
train, test = rows[:200], rows[200:400]
backbone = {"backbone": "tf_efficientnet_lite0", "image_size": 32, "random_state": 0}

# %%
# The default, ``alpha="auto"``, is a function of the sums: no row is held out, and after a deletion it
# is what a fit without the rows would choose. Its curve is kept: minus twice the log evidence of each
# value, a class.
ladder = FastNTKClassifier(**backbone, n_components=1024).fit(X[train], y[train])
ladder.unlearn(X[train[:3]])
refit = FastNTKClassifier(**backbone, n_components=1024).fit(X[train[3:]], y[train[3:]])
print(f"alpha_ {ladder.alpha_:.3g}, of a refit {refit.alpha_:.3g}")
print(f"test accuracy {ladder.score(X[test], y[test]):.1%}")

# %%
# Tangents of norm layers: 12 candidates, 3 folds, one pass.
alphas, scales = (0.01, 0.03, 0.1, 0.3), (0.0, 0.25, 1.0)
start = time.perf_counter()
settings = {"trainable": "norm", "n_components": 256, "cv": 3}
search = FastNTKClassifierCV(**backbone, alphas=alphas, tangent_scales=scales, **settings)
search.fit(X[train], y[train])
print(f"{time.perf_counter() - start:.1f} s, best: {search.best_params_}")
print(f"test accuracy {search.score(X[test], y[test]):.1%}")

# %%
# What was found can forget; the receipt tells that a search has seen the rows.
search.unlearn(X[train[:3]])
print(search.receipts_[-1]["searched_by"])

# %%
scores = 100 * search.cv_results_["mean_test_score"].reshape(len(alphas), len(scales))
figure, (left, ax) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
left.plot(ladder.alpha_path_.keys(), ladder.alpha_path_.values(), "o-", ms=3)
left.plot(ladder.alpha_, ladder.alpha_path_[ladder.alpha_], "o", color="tab:red", label="alpha_")
left.set(xscale="log", xlabel="alpha", ylabel="-2 log evidence a class", title="ladder: alpha_path_")
left.legend()
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
    title="norm: accuracy on held-out rows, %",
)
figure.colorbar(picture)
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
