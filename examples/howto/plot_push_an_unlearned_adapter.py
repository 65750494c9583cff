"""
Publish an adapter that has forgotten
=====================================

The adapter on the Hub is what predicts; the state that forgets stays with you. Whoever has the adapter
of before and of after a deletion can tell a lot about what was deleted: earlier versions must go.
"""

# %%
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier

X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)[:300]
clf = FastNTKClassifier("tf_efficientnet_lite0", image_size=32, n_components=1024, random_state=0)
clf.fit(X, y[:300])

# %%
# A folder with the same files as the repository of the Hub. With a token it is one line::
#
#     clf.push_to_hub("me/digits")
before, folder = deepcopy(clf), Path(tempfile.mkdtemp())
clf.save_pretrained(folder / "before")
clf.unlearn(X[41:42])
clf.save_pretrained(folder / "after")
print(sorted(path.name for path in (folder / "after").iterdir()))
print((folder / "after" / "README.md").read_text().split("## ")[1][:300])

# %%
# And after a deletion::
#
#     clf.unlearn(X_forget).push_to_hub("me/digits", purge_history=True)
#
# What ``purge_history`` is for: an attacker who holds both versions, and pictures that may have been
# learned, asks on which of them the two disagree most.
old, new = (FastNTKClassifier.from_pretrained(folder / name) for name in ("before", "after"))
moved = np.linalg.norm(old.decision_function(X) - new.decision_function(X), axis=1)
print("place of the forgotten picture among 300 candidates:", 1 + int((moved > moved[41]).sum()))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", width_ratios=[1, 3])
left.imshow(X[41], cmap="gray_r")
left.set(title=f"forgotten: a {y[41]}", xticks=[], yticks=[])
right.hist(np.delete(moved, 41), 40, color="0.7", label="other pictures")
right.axvline(moved[41], color="tab:red", label="the forgotten one")
right.set(xlabel="difference of the scores of both versions", ylabel="candidates")
right.legend()
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
