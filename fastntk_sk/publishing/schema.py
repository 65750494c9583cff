"""Predicates for JSON that somebody else may have written."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from ..exceptions import StateFormatError, UnknownKeyWarning

Check = Callable[[Any], bool]
MAX_INTEGER = 2**53  # up to which every integer is a float too


def section(found: Any, schema: dict[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
    """Return the keys of a schema, each checked; others are named in a warning.

    Parameters
    ----------
    found : object
        Should be a dict.

    schema : dict
        From keys to predicates, or to further dicts.

    name : str
        Of the file, for messages.

    prefix : str, default=""

    Returns
    -------
    checked : dict
    """
    if not isinstance(found, dict):
        raise StateFormatError(f"Expected {prefix or 'the whole'!r} of {name} to be an object.")
    unknown = sorted(set(found) - set(schema) - {"version"})
    if unknown:
        warnings.warn(
            f"{name} holds {[prefix + key for key in unknown]}, which this version does not know and "
            "ignores. Upgrade fastntk_sk to use them.",
            UnknownKeyWarning,
            stacklevel=6,
        )
    checked = {}
    for key, rule in schema.items():
        if isinstance(rule, dict):
            checked[key] = section(found.get(key), rule, name, f"{prefix}{key}.")
        elif key in found and rule(found[key]):
            checked[key] = found[key]
        else:
            got = f"got {found[key]!r:.100}" if key in found else "it is missing"
            raise StateFormatError(
                f"Expected a valid {prefix + key!r} in {name}, {got}. Restore a backup."
            )
    return checked


def integer(low: int, high: int) -> Check:
    """Accept an int (no bool) within bounds."""
    return lambda value: type(value) is int and low <= value <= high


def number(low: float) -> Check:
    """Accept a finite number that is not below a bound."""
    return lambda value: real(value) and low <= value <= sys.float_info.max


def real(value: Any) -> bool:
    """Accept a number, be it infinite or NaN; of integers, those that are floats too."""
    return type(value) is float or (type(value) is int and abs(value) <= MAX_INTEGER)


def text(pattern: re.Pattern[str] | None = None, length: int = 4096) -> Check:
    """Accept a string that is not too long and matches a pattern as a whole."""
    return lambda value: (
        isinstance(value, str)
        and len(value) <= length
        and (pattern is None or bool(pattern.fullmatch(value)))
    )


def optional(rule: Check) -> Check:
    """Accept None too."""
    return lambda value: value is None or rule(value)


def list_of(rule: Check, low: int = 0, high: int = 10**6) -> Check:
    """Accept a list of what a rule accepts."""
    return lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(rule, value))


def one_of(*choices: Any) -> Check:
    """Accept some values, of their own type."""
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)
