"""
Thousands of deletions
======================

Requests come for years, some rows at a time. Each is one subtraction and one solve, for which the sums
choose the ridge anew. Rounding adds up slowly; what it comes to, a refit tells.
"""

# %%
# 1,200 of 1,400 rows go in 240 requests, in an order that nobody planned.
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier

X, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(X))
X, y, X_test, y_test = X[order[:1400]], y[order[:1400]], X[order[1400:]], y[order[1400:]]


def make():
    return FastNTKClassifier(n_components=128, random_state=0)


clf = make().fit(X, y)
seconds, accuracy = [], {}
for i in range(0, 1200, 5):
    start = time.perf_counter()
    clf.unlearn(X[i : i + 5])
    seconds.append(time.perf_counter() - start)
    if i % 100 == 0:
        accuracy[i + 5] = clf.score(X_test, y_test)

# %%
# The model is still that of a fit which never saw the 1,200 rows.
refit = make().fit(X[1200:], y[1200:])
gap = np.linalg.norm(clf.readout_ - refit.readout_) / np.linalg.norm(refit.readout_)
print(f"alpha_ {clf.alpha_:.3g}, of the refit {refit.alpha_:.3g}")
print(f"relative difference to a refit: {gap:.0e}")
print(f"largest residual of a solve:    {max(r['residual'] for r in clf.receipts_):.0e}")
print(f"median seconds of a deletion:   {np.median(seconds):.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(1000 * np.array(seconds), ".", ms=3, alpha=0.6)
left.set(xlabel="request", ylabel="milliseconds", ylim=(0, 4000 * np.median(seconds)))
right.plot(accuracy.keys(), [100 * value for value in accuracy.values()], "o-", label="after deletions")
right.axhline(100 * refit.score(X_test, y_test), color="black", ls="--", label="refit on the 200 left")
right.set(xlabel="rows forgotten", ylabel="test accuracy, %")
right.legend()
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
