"""
Forget a person by name
=======================

A request names a person, and nobody has the pictures any more. Where the features of the learned rows
are kept beside the sums, the name is enough. Requests wait in the same file, and run as one deletion.
"""

# %%
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier, Requests
from fastntk_sk.evaluation import ForgettingTimelineDisplay

X, y = load_digits(return_X_y=True)
names = [f"person {i}" for i in np.random.default_rng(0).integers(0, 120, len(X))]
file = Path(tempfile.mkdtemp()) / "clinic.fastntk"

# %%
# Learn, and keep features and names. They describe persons: encrypt the file in earnest (``key=...``).
clf = FastNTKClassifier(keep="features", random_state=0).fit(X, y, sample_ids=names)
clf.save(file)

# %%
# What is held like this picture? A scan of a learned picture is found, though its content is another.
scan = X[11:12] + np.random.default_rng(1).normal(0, 0.5, (1, 64))
for row in clf.find(scan, n=3, threshold=0.5)[0]:
    print(f"{row['similarity']:.3f}  {row['sample_id']}  a {row['label']}  the same: {row['same']}")

# %%
# Three requests come in, one of them for somebody who was never learned. What would go?
requests = Requests(file)
for case, person in enumerate(("person 7", "person 42", "person 999")):
    requests.add(f"Letter {case}", sample_ids=[person], request_id=f"case {case}")
for row in requests.show():
    print(f"{row['request_id']}: {row['item']} {row['result']}, {row['n_rows']} rows")

# %%
# They run as one deletion, with one receipt; what is unknown blocks nothing.
requests.run()
requests.close("case 2", "nothing held")
for request in requests.all():
    print(request.request_id, request.state, "subject erased:", not request.subject)
print(requests.letter("case 0"))

# %%
# The result is that of a fit without them.
forgotten = np.isin(names, ["person 7", "person 42"])
refit = FastNTKClassifier(random_state=0).fit(X[~forgotten], y[~forgotten])
clf = FastNTKClassifier.load(file)
gap = np.linalg.norm(clf.readout_ - refit.readout_) / np.linalg.norm(refit.readout_)
print(f"parameters differ from a refit by {gap:.1e}")

# %%
# A second deletion, and the picture of both.
requests.add(sample_ids=["person 99"])
requests.run()
display = ForgettingTimelineDisplay.from_estimator(FastNTKClassifier.load(file))
display.ax_.set_title("Three persons in two deletions")
display.figure_.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
