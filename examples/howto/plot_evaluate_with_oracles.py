"""
Is it forgotten? Ask an oracle
==============================

A deletion is as good as the model that never saw the rows. So every metric compares with a retrained
oracle, and a second oracle says how far two retrainings are apart: the noise floor.
"""

# %%
# A fine-tuned model has learned 30 wrong labels.
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from fastntk_sk import FastNTKClassifier
from fastntk_sk.baselines import random_label, retrain
from fastntk_sk.evaluation import UnlearningDisplay, unlearning_report

rng = np.random.default_rng(0)
X, y = load_digits(return_X_y=True)
order = rng.permutation(len(X))
X, y = X[order], y[order]
y[:30] = (y[:30] + rng.integers(1, 10, 30)) % 10
forget, retain, test = (X[:30], y[:30]), (X[30:300], y[30:300]), (X[300:1000], y[300:1000])
original = FastNTKClassifier(
    anchor="finetuned", n_components=256, max_epochs=30, predict_with="linear", random_state=0
).fit(X[:300], y[:300])
print(f"linearity_ {original.linearity_:.2f}: above 0.5, fit warns unless the linearised model is read")

# %%
# Ours needs the forgotten rows only; the baseline takes gradient steps on random labels.
models = {
    "unlearn": deepcopy(original).unlearn(*forget),
    "random labels": random_label(original, *retain, *forget, random_state=0),
}
oracles = [retrain(original, *retain, *forget, random_state=seed) for seed in (1, 2)]
report = unlearning_report(
    models,
    original=original,
    oracle=oracles[0],
    second_oracle=oracles[1],
    retain=retain,
    forget=forget,
    test=test,
)
columns = ["accuracy_retain", "accuracy_forget", "accuracy_test", "tow", "mia_auc"]
print(report[columns].round(3).to_string())

# %%
# After a good deletion, the panels of the unlearned model and of the oracle cannot be told apart.
display = UnlearningDisplay.from_estimators(
    models["unlearn"],
    original=original,
    oracle=oracles[0],
    retain=retain,
    forget=forget,
    test=test,
)
display.figure_.savefig(Path(sys.argv[0]).with_suffix(".png"), dpi=110)
