"""
Learn in parts, and go on after an interruption
===============================================

The result of ``partial_fit`` on several parts is that of one fit on all rows. Where a fit takes hours,
save between the parts: after a power cut, load what was saved and go on with the next part. What was
saved describes rows, so delete it when the fit is done.
"""

# %%
# Eight parts of the digits. After the fifth the process is lost.
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier

X, y = load_digits(return_X_y=True)
X_train, y_train, X_test, y_test = X[:1200], y[:1200], X[1200:], y[1200:]
parts = np.array_split(np.arange(len(X_train)), 8)
state = Path(tempfile.mkdtemp()) / "digits.fastntk"


def learn(clf, parts):
    """Learn parts, save after each, and return the test accuracies."""
    scores = []
    for rows in parts:
        clf.partial_fit(X_train[rows], y_train[rows], classes=np.arange(10))
        clf.save(state)
        scores.append(clf.score(X_test, y_test))
    return scores


before = learn(FastNTKClassifier(n_components=512, random_state=0), parts[:5])

# %%
# Another process, another day: the number of learned rows tells which part is next.
clf = FastNTKClassifier.load(state)
n_learned = clf.n_samples_learned_
n_done = sum(np.cumsum([len(rows) for rows in parts]) <= n_learned)
print(f"{n_learned} rows were learned: going on with part {n_done + 1}")
after = learn(clf, parts[n_done:])

# %%
# It is the model of one fit.
whole = FastNTKClassifier(n_components=512, random_state=0).fit(X_train, y_train)
scores = [one.decision_function(X_test) for one in (clf, whole)]
difference = np.linalg.norm(scores[0] - scores[1]) / np.linalg.norm(scores[1])
print(f"eight parts against one fit: {difference:.0e} relative")

# %%
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
ax.plot(range(1, 6), 100 * np.array(before), "o-", label="before the interruption")
ax.plot(range(n_done + 1, 9), 100 * np.array(after), "o-", label="after it")
ax.axhline(100 * whole.score(X_test, y_test), color="black", lw=0.8, label="one fit")
ax.set(xlabel="parts learned", ylabel="test accuracy (%)", title=f"difference {difference:.0e}")
ax.legend()
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
