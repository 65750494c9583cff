"""How exact a deletion was: what forbids "exact", and what is said."""

import math

import pytest

from fastntk_sk.publishing.exactness import exactness, exactness_text

EXACT = {"drift": 0.0, "position_gap": 0.0, "residual": 1e-10, "rounding": 1e-8}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"drift": 1e-16}, "backbone gives"),
        ({"drift": math.nan}, "backbone gives"),
        ({"residual": 1.1e-10}, "residual of more than 1e-10"),
        ({"residual": math.nan}, "residual"),
        ({"rounding": 1.1e-8}, "more than 1e-08"),
        ({"rounding": math.inf}, "rounding"),
        ({"position_gap": 1e-7}, "other rows of its batch"),
        ({"seen_by": ["'scaler' (StandardScaler)"]}, "fitted steps"),
        ({"searched_by": ["GridSearchCV"]}, "a search or a calibration chose"),
        ({"anchor": "finetuned"}, "fine-tuned anchor"),
        ({"backbone_has_seen": True}, "backbone has seen"),
        ({"backbone_has_seen": "unknown"}, "not known whether"),
    ],
)
def test_one_reason_is_enough(changes, words):
    found = exactness(**(EXACT | changes))
    assert found["exact"] is False
    (reason,) = found["reasons"]
    assert words in reason
    assert "Standard" not in reason
    assert "GridSearch" not in reason
    assert exactness_text(found) == f"approximate: {reason}"


def test_every_reason_is_named():
    every = {"seen_by": ["a"], "searched_by": ["b"], "anchor": "finetuned", "backbone_has_seen": True}
    found = exactness(drift=1.0, position_gap=1.0, residual=1.0, rounding=1.0, **every)
    assert len(found["reasons"]) == 8
    assert exactness_text(found).count(";") == 7
    exact = exactness(**EXACT)
    assert exact == {"exact": True, "reasons": []}
    assert exactness_text(exact) == "exact for the linearised model"
    assert "model itself" in exactness_text(exact, is_linear=True)
