"""Methods to compare a deletion with: retraining, the Fast-NTK paper's baselines and later methods.

All have one signature,
`baseline(estimator, X_retain, y_retain, X_forget, y_forget, *, random_state=None)`: they take a fitted
estimator, which they do not change, and return a fitted one. `finetune`, `max_loss`, `random_label`,
`scrub` and `salun` take any torch module too. `evaluation.unlearning_report` runs every function of this
signature.
"""

from .dual import fast_ntk_dual, full_ntk
from .gradient import finetune, max_loss, random_label, retrain
from .modules import ModuleClassifier
from .network import BaselineClassifier, before_solve, untrained
from .recent import salun, scrub, ssd

__all__ = [
    "BaselineClassifier",
    "ModuleClassifier",
    "before_solve",
    "fast_ntk_dual",
    "finetune",
    "full_ntk",
    "max_loss",
    "random_label",
    "retrain",
    "salun",
    "scrub",
    "ssd",
    "untrained",
]
