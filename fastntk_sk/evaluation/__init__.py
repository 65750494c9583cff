"""Metrics, attacks and reports of unlearning.

Each states its formula and which direction is better. A metric that compares with a retrained model
raises an error without one.
"""

from ._checks import Classifier, MissingOracleError, NoNoiseFloorWarning
from .attacks import ULiRAResult, gaussian_unlearning_score, klom, population_mia_auc, u_lira
from .display import ChangedPredictionsDisplay, ForgettingTimelineDisplay, UnlearningDisplay
from .metrics import (
    accuracy_gaps,
    activation_distance,
    algebraic_gap,
    linearisation_gap,
    margins,
    tug_of_war,
)
from .page import report_page
from .relearning import relearn_curve, relearn_time
from .report import unlearning_report
from .residual import residual_knowledge
from .selection import make_forget_scorer
from .shadows import shadow_margins

__all__ = [
    "ChangedPredictionsDisplay",
    "Classifier",
    "ForgettingTimelineDisplay",
    "MissingOracleError",
    "NoNoiseFloorWarning",
    "ULiRAResult",
    "UnlearningDisplay",
    "accuracy_gaps",
    "activation_distance",
    "algebraic_gap",
    "gaussian_unlearning_score",
    "klom",
    "linearisation_gap",
    "make_forget_scorer",
    "margins",
    "population_mia_auc",
    "relearn_curve",
    "relearn_time",
    "report_page",
    "residual_knowledge",
    "shadow_margins",
    "tug_of_war",
    "u_lira",
    "unlearning_report",
]
