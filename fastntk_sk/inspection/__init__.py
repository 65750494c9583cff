"""What each learned row does to a model: exact, because deletion is."""

from ._calibration import calibrate
from ._curve import learning_curve
from ._display import AlphaPathDisplay, InfluenceDisplay, LabelIssuesDisplay
from ._issues import duplicates, label_issues
from ._without import influence, leave_one_out

__all__ = [
    "AlphaPathDisplay",
    "InfluenceDisplay",
    "LabelIssuesDisplay",
    "calibrate",
    "duplicates",
    "influence",
    "label_issues",
    "learning_curve",
    "leave_one_out",
]
