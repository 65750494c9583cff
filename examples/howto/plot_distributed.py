"""
More than one process, more than one machine
============================================

Within ``share_rows`` every rank learns its share of the rows; the sums are added up once, and all ranks
end with the same model. The same call works on one machine and on many; on GPUs with the backend nccl.
"""

# %%
# What every rank runs. All of them are given all rows, and read only their share: pass paths, or a
# dataset that is read on demand. Outside of ``share_rows`` every process is on its own.
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier

SCRIPT = """
import torch.distributed as dist
from sklearn.datasets import load_digits
from fastntk_sk import FastNTKClassifier, share_rows

dist.init_process_group("gloo")
X, y = load_digits(return_X_y=True)
clf = FastNTKClassifier(n_components=128, random_state=0)
with share_rows():
    clf.fit(X[:1200], y[:1200])
    clf.unlearn(X[:10])
if dist.get_rank() == 0:
    clf.save("digits.fastntk")
dist.destroy_process_group()
"""
folder = Path(tempfile.mkdtemp())
(folder / "learn.py").write_text(SCRIPT)

# %%
# ``torchrun --nproc-per-node 2 learn.py``, here as a module of this Python:
command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
subprocess.run([*command, "learn.py"], cwd=folder, check=True, capture_output=True)
together = FastNTKClassifier.load(folder / "digits.fastntk")

# %%
# One process gives the same model.
X, y = load_digits(return_X_y=True)
alone = FastNTKClassifier(n_components=128, random_state=0).fit(X[:1200], y[:1200]).unlearn(X[:10])
scores = [clf.decision_function(X[1200:]).ravel() for clf in (alone, together)]
difference = np.linalg.norm(scores[0] - scores[1]) / np.linalg.norm(scores[0])
print(f"two ranks against one process: {difference:.0e} relative")
print(f"test accuracy {together.score(X[1200:], y[1200:]):.1%}")

# %%
figure, ax = plt.subplots(figsize=(4.4, 4.2), layout="constrained")
ax.plot(scores[0], scores[1], ".", ms=2)
ax.axline((0, 0), slope=1, color="black", lw=0.5)
ax.set(
    xlabel="scores of one process", ylabel="scores of two ranks", title=f"difference {difference:.0e}"
)
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
