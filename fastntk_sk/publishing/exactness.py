"""How exact a deletion was: decided from what was measured, held as data, and said in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..sums.solvers import ROUNDING

RESIDUAL = 1e-10  # the largest of an exact deletion


def exactness(
    *,
    drift: float,
    position_gap: float,
    residual: float,
    rounding: float,
    seen_by: Sequence[str] = (),
    searched_by: Sequence[str] = (),
    anchor: str = "pretrained",
    backbone_has_seen: bool | str = False,
) -> dict[str, Any]:
    """Return whether a deletion was exact ("exact"), and what forbids it ("reasons", a list of str).

    `drift` is the relative difference between tangent features here and those that were learned;
    `position_gap` the relative effect that a row's place in its batch, and the other rows, have on them;
    `residual` that of the normal equations after the solve; `rounding` the `rounding_bound` of the rows
    that are left and of those removed since the sums were made. `seen_by` and `searched_by` name the
    fitted steps, and the searches and calibrations, that have seen the rows; reasons name none of them.
    """
    forbidden = {  # NaN is not exact either
        "what the backbone gives differs from what was learned": drift != 0,
        "what the backbone gives for a row depends on the other rows of its batch": position_gap != 0,
        f"the solve left a residual of more than {RESIDUAL:g}": not residual <= RESIDUAL,
        f"rounding may leave more than {ROUNDING:g} of the rows": not rounding <= ROUNDING,
        "fitted steps before the classifier have seen the rows": bool(seen_by),
        "hyper-parameters that a search or a calibration chose have seen the rows": bool(searched_by),
        "the fine-tuned anchor has seen the rows": anchor == "finetuned",
        "the trained module that is the anchor has seen the rows": anchor == "trained",
        "the backbone has seen the rows": backbone_has_seen is True,
        "it is not known whether the backbone has seen the rows": backbone_has_seen == "unknown",
    }
    reasons = [reason for reason, holds in forbidden.items() if holds]
    return {"exact": not reasons, "reasons": reasons}


def exactness_text(exactness: Mapping[str, Any], *, is_linear: bool = False) -> str:
    """Return the exactness of one deletion or several in words; the model may be linear itself."""
    if exactness["exact"]:
        return f"exact for the {'model itself' if is_linear else 'linearised model'}"
    return f"approximate: {'; '.join(exactness['reasons'])}"
