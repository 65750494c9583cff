"""Loaders on drawn files: any bytes, and any value in any place under checksums that fit."""

import copy

import hostile
import numpy as np
import pytest
from hostile import EACH, STATE, outcome, saved_parts
from hypothesis import given, settings
from hypothesis import strategies as st

from fastntk_sk.exceptions import StateFormatError
from fastntk_sk.publishing import files
from fastntk_sk.store.database import connect

# the same examples every time: those that failed once are in the tests of named forgeries
FUZZ = settings(deadline=None, derandomize=True, database=None)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = [0, 1, 2, 3, 4, 17, 2**31, 2**53, 2**63, -1, 0.5, 1e308, 5e-324]
WORDS = "mlp os.system cpu:1 cuda local-dir:/etc hf-hub:../x float32 finetuned linear prompt * <i8 U O"
LISTS = [["head"], ["full"], ["norm", "bias"], [[]], [1, 1], [4096, 4096], [True, False, None], ["a"]]
VALUES = st.sampled_from([*NUMBERS, *WORDS.split(), "", "a" * 5000, "0" * 32, *LISTS]) | DOCUMENTS
BYTES = st.binary(max_size=100) | st.builds(
    lambda document, rest: (n := files.canonical(document)) and len(n).to_bytes(8, "little") + n + rest,
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.binary(max_size=20),
)


def paths(value, above=()):
    """Return where the values of a document are."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path for key in keys for path in [(*above, key), *paths(value[key], (*above, key))]]


def changed(data, document):
    """Return a document in which a value was replaced, taken out or added."""
    document = copy.deepcopy(document)
    *above, last = data.draw(st.sampled_from(paths(document)))
    inner = document
    for key in above:
        inner = inner[key]
    what = data.draw(st.sampled_from(["replace"] * 4 + ["remove", "add"]))
    if what == "remove":
        del inner[last]
    elif what == "add" and isinstance(inner, dict):
        inner[data.draw(st.text(max_size=5))] = copy.deepcopy(data.draw(VALUES))
    else:
        inner[last] = copy.deepcopy(data.draw(VALUES))
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def saved(folder):
    return saved_parts(folder)


@settings(FUZZ, max_examples=60)
@given(part=st.sampled_from(["adapter", "records", "tensors", "A", "receipts"]), content=BYTES)
def test_any_bytes(saved, folder, part, content):
    parts = saved[STATE][0].copy()
    model = {part: content} if part in ("adapter", "records", "tensors") else {}
    if part == "A":
        parts.statistics["A"] = content
    parts.write(folder / "forged", **model)
    if part == "receipts":
        with connect(folder / "forged", None, write=True) as db:
            db.replace("receipts", [(content,)])
            hostile.seal(db)
    assert isinstance(outcome(folder / "forged"), StateFormatError)


ROW_VALUES = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=40)
)


@settings(FUZZ, max_examples=100)
@given(data=st.data(), table=st.sampled_from(["segments", "ledger"]))
def test_any_row(saved, folder, data, table):
    """A ledger with any value in any place loads as one that counts the same rows, or not at all."""
    parts, scores = saved[STATE]
    parts = parts.copy()
    rows = getattr(parts, table)
    row = data.draw(st.sampled_from(rows))
    row[data.draw(st.integers(0, len(row) - 1))] = data.draw(ROW_VALUES)
    found = outcome(parts.write(folder / "forged"))
    if not isinstance(found, StateFormatError):
        np.testing.assert_array_equal(found, scores)


@settings(FUZZ, max_examples=160)
@given(data=st.data(), case=st.sampled_from(EACH))
def test_any_value(saved, folder, data, case):
    parts = saved[case][0].copy()
    part = data.draw(st.sampled_from(["config", "records", "receipts"][: 3 if parts.records else 1]))
    setattr(parts, part, changed(data, getattr(parts, part)))
    found = outcome(parts.write(folder / "forged"))
    if part == "records" and isinstance(found, np.ndarray):
        np.testing.assert_array_equal(found, saved[case][1])
