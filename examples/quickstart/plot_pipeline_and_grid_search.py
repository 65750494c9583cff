"""
In a pipeline, in a grid search
===============================

``FastNTKClassifier()`` is an ordinary scikit-learn classifier. Fitted steps before it, and searches
around it, have seen the rows too: the library says so when it forgets.
"""

# %%
# Handwritten digits as vectors of 64 pixels, through a fixed random network.
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from fastntk_sk import FastNTKClassifier, unlearn

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=400, random_state=0)

# %%
# A step that learns nothing keeps deletion exact.
scale = FunctionTransformer(lambda X: X / 16, feature_names_out="one-to-one")
pipeline = make_pipeline(scale, FastNTKClassifier(n_components=128, random_state=0))
pipeline.fit(X_train, y_train)
unlearn(pipeline, X_train[:5])
print("fixed scale: ", pipeline[-1].receipts_[-1]["exactness"])

# %%
# A scaler has seen the rows: its means and deviations hold them. The deletion goes through, with a
# warning and a receipt that says so; ``strict=True`` would refuse it.
scaled = make_pipeline(StandardScaler(), FastNTKClassifier(n_components=128, random_state=0))
scaled.fit(X_train, y_train)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    unlearn(scaled, X_train[:5])
print("fitted scale:", scaled[-1].receipts_[-1]["exactness"])
print("warning:     ", caught[0].message)

# %%
# A grid search over anything. ``alpha="auto"``, the default, needs none with a ladder or the head; of
# tangents, ``FastNTKClassifierCV`` finds ``alpha`` and ``tangent_scale`` at the price of one pass.
# See "Choose the ridge and the weight of the tangents".
grid = {
    "fastntkclassifier__alpha": [1e-3, 1e-2, 0.1, 1.0],
    "fastntkclassifier__trainable": ["head", "ladder", "norm"],
}
search = GridSearchCV(pipeline, grid, cv=3).fit(X_train, y_train)
unlearn(search, X_train[:5])
print("searched:    ", search.best_estimator_[-1].receipts_[-1]["exactness"])
print(f"test accuracy {search.score(X_test, y_test):.1%} with {search.best_params_}")

# %%
# How the candidates compare.
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
results = search.cv_results_
for trainable in grid["fastntkclassifier__trainable"]:
    chosen = np.array([p["fastntkclassifier__trainable"] == trainable for p in results["params"]])
    ax.errorbar(
        grid["fastntkclassifier__alpha"],
        100 * results["mean_test_score"][chosen],
        100 * results["std_test_score"][chosen],
        marker="o",
        capsize=3,
        label=trainable,
    )
ax.set(xscale="log", xlabel="alpha", ylabel="accuracy on held-out rows, %")
ax.legend(title="trainable")
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
