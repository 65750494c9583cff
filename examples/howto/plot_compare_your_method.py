"""
Compare your own unlearning method
==================================

A report takes plain torch modules and any function that unlearns. Here a network of torch learns digits,
and a method of our own is compared with retraining and with two methods of the library.
"""

# %%
# 60 of 600 labels are wrong, and shall be forgotten.
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from fastntk_sk.baselines import finetune, scrub
from fastntk_sk.evaluation import unlearning_report

X, y = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
y[:60] = (y[:60] + rng.integers(1, 10, 60)) % 10
sets = {"forget": (X[:60], y[:60]), "retain": (X[60:600], y[60:600]), "test": (X[600:], y[600:])}


# %%
# A training loop of torch. Nothing of the library is in it.
def train(net, X, y, epochs, sign=1):
    X, y = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
    optimiser = torch.optim.Adam(net.parameters())
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(50):
            optimiser.zero_grad()
            (sign * torch.nn.functional.cross_entropy(net(X[rows]), y[rows])).backward()
            optimiser.step()
    return net


def fit(X, y, seed):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    return train(net, X, y, epochs=60)


# %%
# The new method: one step up the loss of the forget set for each of its batches, then a repair on the
# rows that stay. It gets a copy of the original, and returns a module.
def ascend_and_repair(original, X_retain, y_retain, X_forget, y_forget):
    train(original, X_forget, y_forget, epochs=2, sign=-1)
    return train(original, X_retain, y_retain, epochs=3)


# %%
# The functions of `fastntk_sk.baselines` have the same signature. Values lie between 0 and 16; `radius`
# adds residual knowledge, which says whether a small change of a forgotten row brings its label back.
methods = {"ascend and repair": ascend_and_repair}
for method in (finetune, scrub):
    methods[method.__name__] = partial(method, learning_rate=5e-3, random_state=0)
report = unlearning_report(
    methods,
    original=fit(X[:600], y[:600], seed=0),
    oracle=fit(*sets["retain"], seed=1),
    second_oracle=fit(*sets["retain"], seed=2),
    radius=1.0,
    **sets,
)
print(report.T.round(3).to_string())

# %%
# Where a method is as good as retraining, its bars are no longer than those of the noise floor.
ax = report[["activation_distance_forget", "residual_knowledge"]].plot.barh()
ax.invert_yaxis()
ax.figure.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110, bbox_inches="tight")
