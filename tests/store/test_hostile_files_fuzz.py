"""Loaders on drawn files: any bytes, and any value in any place under digests that fit."""

import copy
import json
import struct

import hostile
import numpy as np
import pytest
import torch
from hostile import (
    BACKBONES,
    EACH,
    KINDS,
    STATES,
    Case,
    X,
    fitted,
    outcome,
    saved_parts,
    tiny,
    write_state,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fastntk_sk import verify_receipts
from fastntk_sk.exceptions import ReceiptError, StateFormatError
from fastntk_sk.publishing import files

# the same examples every time: those that failed once are in the tests of named forgeries
FUZZ = settings(deadline=None, derandomize=True, database=None)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = [0, 1, 2, 3, 4, 17, 2**31, 2**53, 2**63, 10**400, -1, 0.5, 1e308, 5e-324]
WORDS = "mlp os.system cpu:1 cuda local-dir:/etc hf-hub:../x float32 finetuned linear prompt * <i8 U O"
LISTS = [
    ["head"],
    ["full"],
    ["norm", "bias"],
    [[]],
    [1, 1],
    [4096, 4096],
    [True, False, None],
    list("abc"),
]
CODE = [{"trust_remote_code": True}, [{"auto_map": {}}]]
ODD = st.sampled_from([*NUMBERS, *WORDS.split(), "", "a" * 5000, "0" * 32, *LISTS, *CODE])
VALUES = ODD | DOCUMENTS


def safetensors(header, data):
    """Return a file of any header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


BYTES = (
    st.binary(max_size=100)
    | DOCUMENTS.map(lambda document: json.dumps(document).encode())
    | st.builds(safetensors, DOCUMENTS, st.binary(max_size=20))
)


def paths(value, above=()):
    """Return where the values of a document are."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path for key in keys for path in [(*above, key), *paths(value[key], (*above, key))]]


def changed(data, document):
    """Return a document in which a few values were replaced, taken out or added."""
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(paths(document)))
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        what = data.draw(st.sampled_from(["replace"] * 4 + ["remove", "add"]))
        if what == "remove" and len(paths(document)) > 1:
            del inner[path[-1]]
        elif what == "add" and isinstance(inner, dict):
            inner[data.draw(st.text(max_size=5))] = copy.deepcopy(data.draw(VALUES))
        else:
            inner[path[-1]] = copy.deepcopy(data.draw(VALUES))
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def cases(folder):
    clf = fitted(backbone=tiny).unlearn(X[1:2])
    return {kind: Case(clf, kind, folder / kind, tiny) for kind in KINDS}


@pytest.fixture(scope="module")
def saved(folder):
    return saved_parts(folder)


@settings(FUZZ, max_examples=200)
@given(data=st.data(), content=BYTES)
def test_any_bytes_in_place_of_a_file(cases, data, content):
    case = cases[data.draw(st.sampled_from(KINDS))]
    assert case.damage(data.draw(st.sampled_from(case.names)), content) is not None


@settings(FUZZ, max_examples=200)
@given(part=st.sampled_from(["adapter", "statistics", "ledger", "receipts"]), content=BYTES)
def test_any_bytes_under_their_own_digest(cases, folder, part, content):
    case = cases["state"]
    contents = {n.partition("-")[0]: (case.folder / n).read_bytes() for n in case.names}
    del contents["manifest.json"]
    signed = emptied(folder / "signed")
    write_state(signed, contents | {part: content})
    assert isinstance(outcome(lambda: hostile.load(signed, tiny)), StateFormatError)


def forged(folder, case, parts):
    """Return the named error of some parts, or scores that are finite."""
    parts.write(folder / "forged")
    return outcome(lambda: hostile.load(folder / "forged", BACKBONES[case[0]]))


@settings(FUZZ, max_examples=400)
@given(data=st.data(), case=st.sampled_from(EACH))
def test_any_value_in_the_configuration(saved, folder, data, case):
    parts = saved[case][0].copy()
    parts.config = changed(data, parts.config)
    forged(folder, case, parts)


@settings(FUZZ, max_examples=200)
@given(data=st.data(), case=st.sampled_from(STATES))
def test_any_value_in_the_records(saved, folder, data, case):
    parts = saved[case][0].copy()
    parts.records = changed(data, parts.records)
    found = forged(folder, case, parts)
    if isinstance(found, np.ndarray):
        np.testing.assert_array_equal(found, saved[case][1])


DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int8, torch.uint8, torch.bool]


@settings(FUZZ, max_examples=200)
@given(
    data=st.data(),
    case=st.sampled_from(EACH),
    dtype=st.none() | st.sampled_from(DTYPES),
    value=st.sampled_from([0, 1, -1, 100, 2**62, float("nan"), float("inf"), 1e6]),
)
def test_any_tensor(saved, folder, data, case, dtype, value):
    parts = saved[case][0].copy()
    part = data.draw(st.sampled_from(["tensors", "statistics", "ledger"]))
    tensors = getattr(parts, part) or parts.tensors
    name = data.draw(
        st.sampled_from([*sorted(tensors), "x", "network.x", "probe.1", "1.label", "anchor.moved"])
    )
    like = list(tensors[name].shape) if name in tensors else []
    shape = data.draw(st.just(like) | st.lists(st.integers(0, 4), max_size=3))
    own = tensors[name].dtype if name in tensors else torch.float32
    tensors[name] = torch.full(shape, float(value), dtype=torch.float64).to(dtype or own)
    forged(folder, case, parts.with_tensors())


@settings(FUZZ, max_examples=200)
@given(data=st.data(), part=st.sampled_from(["adapter", "statistics", "ledger"]))
def test_any_value_in_a_header(cases, folder, data, part):
    case = cases["state"]
    contents = {n.partition("-")[0]: (case.folder / n).read_bytes() for n in case.names}
    del contents["manifest.json"]
    content = contents[part]
    stop = 8 + int.from_bytes(content[:8], "little")
    header = changed(data, json.loads(content[8:stop]))
    signed = emptied(folder / "signed")
    write_state(signed, contents | {part: safetensors(header, content[stop:])})
    found = outcome(lambda: hostile.load(signed, tiny))
    assert isinstance(found, (StateFormatError, np.ndarray))


@settings(FUZZ, max_examples=200)
@given(data=st.data())
def test_any_value_in_receipts(cases, folder, data):
    lines = (cases["receipts"].folder / "receipts.jsonl").read_bytes().splitlines()
    which = data.draw(st.integers(0, len(lines) - 1))
    receipt = changed(data, json.loads(lines[which]))
    if data.draw(st.booleans()):
        receipt.pop("digest", None)
        receipt = files.signed(receipt)
    lines[which] = json.dumps(receipt).encode()
    (folder / "receipts.jsonl").write_bytes(b"\n".join(lines))
    try:
        found = verify_receipts(folder / "receipts.jsonl")
    except ReceiptError:
        return
    assert len(found) == len(lines)


def emptied(folder):
    """Return a folder without files."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    return folder
