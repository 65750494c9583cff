"""What each learned row does to a model: exact, because deletion is."""

from ._calibration import calibrate
from ._issues import duplicates, label_issues
from ._without import influence, leave_one_out

__all__ = ["calibrate", "duplicates", "influence", "label_issues", "leave_one_out"]
