"""
More than one process, more than one machine
============================================

Within ``share_rows`` every rank reads its share of the rows and takes the sums over it. Rank 0 adds the
sums up, solves, and hands the model out. The same script runs on one machine and on many.
"""

# %%
# What every rank runs. All of them are given all rows, and read only their share: pass paths, or a
# dataset that is read on demand. Outside of ``share_rows`` every process is on its own.
#
# Rank 0 alone ends with what describes the rows: sums, ledger, receipts. The others hold what predicts.
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier

SCRIPT = """
import pickle

import numpy as np
import torch.distributed as dist
from sklearn.datasets import load_digits
from fastntk_sk import FastNTKClassifier, share_rows

dist.init_process_group("gloo")  # on GPUs "nccl", and a device for each local rank
rank, size = dist.get_rank(), dist.get_world_size()
X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)

clf = FastNTKClassifier("tf_efficientnet_lite0", image_size=32, n_components=1024, random_state=0)
with share_rows():
    clf.fit(X[:400], y[:400])
    clf.unlearn(X[:10])

mine = range(400 + rank, 1000, size)  # every rank predicts, by itself
np.savez(f"rank {rank}", rows=mine, scores=clf.decision_function(X[mine]), held=len(pickle.dumps(clf)))
if rank == 0:
    clf.save("digits.fastntk")
dist.destroy_process_group()
"""
folder = Path(tempfile.mkdtemp())
(folder / "learn.py").write_text(SCRIPT)

# %%
# ``torchrun --nproc-per-node 2 learn.py``, here as a module of this Python. Of two machines with eight
# GPUs, each runs ``torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint
# FIRST:29400 learn.py``, where FIRST is the name of one of them.
command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
subprocess.run([*command, "learn.py"], cwd=folder, check=True, capture_output=True)
parts = [np.load(folder / f"rank {rank}.npz") for rank in range(2)]

# %%
# One process gives the same model, but for rounding where it has another number of threads: torchrun
# gives one to each rank. What rank 0 has saved is an estimator like any other, which forgets further
# rows without the other ranks.
X, y = load_digits(return_X_y=True)
X = (X.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
alone = FastNTKClassifier("tf_efficientnet_lite0", image_size=32, n_components=1024, random_state=0)
alone.fit(X[:400], y[:400]).unlearn(X[:10])
expected = [alone.decision_function(X[part["rows"]]) for part in parts]
difference = max(
    np.linalg.norm(part["scores"] - scores) / np.linalg.norm(scores)
    for part, scores in zip(parts, expected, strict=True)
)
print(f"two ranks against one process: {difference:.0e} relative")
together = FastNTKClassifier.load(folder / "digits.fastntk").unlearn(X[10:20])
print(f"{together.n_samples_learned_} rows are left after {len(together.receipts_)} deletions")

# %%
# The scores lie on the diagonal in every rank, and rank 1 holds less: neither sums nor ledger.
held = pd.Series([float(part["held"]) / 1e6 for part in parts], ["rank 0", "rank 1"])
print(held.round(1).to_string())
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4.2), layout="constrained")
for rank, (part, scores) in enumerate(zip(parts, expected, strict=True)):
    left.plot(scores.ravel(), part["scores"].ravel(), ".", ms=2, label=f"rank {rank}")
left.axline((0, 0), slope=1, color="black", lw=0.5)
left.legend()
left.set(
    xlabel="scores of one process", ylabel="scores of two ranks", title=f"difference {difference:.0e}"
)
held.plot.bar(ax=right, rot=0, ylabel="MB of an estimator, pickled", title="what a rank holds")
figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
