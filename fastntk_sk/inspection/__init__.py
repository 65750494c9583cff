"""What each learned row does to a model: exact, because deletion is."""

from ._without import influence, leave_one_out

__all__ = ["influence", "leave_one_out"]
