"""Damaged and forged private states: each is a named error, and nothing is executed or followed."""

import json
import os
import pickle
import shutil
from functools import partial

import hostile
import numpy as np
import pytest
import torch
from fastntk_sk.store.private_state import encrypt
from hostile import CHANGES, KEY, MIB, NAMED, ODD, STATE, Payload, X, fitted, outcome, peak, put

from fastntk_sk import verify_receipts
from fastntk_sk.exceptions import (
    FastNTKError,
    InsufficientMemoryError,
    ReceiptError,
    StateFormatError,
    UnknownKeyWarning,
)
from fastntk_sk.publishing import files

KINDS = ("state", "encrypted", "receipts")


@pytest.fixture(scope="module")
def clf():
    return fitted()


def save(clf, kind, folder):
    """Write what one loader reads."""
    if kind == "receipts":
        folder.mkdir(parents=True)
        clf.export_receipts(folder / "receipts.jsonl")
    else:
        clf.save(folder, key=KEY if kind == "encrypted" else None)
    return folder


def error_of(clf, kind, folder):
    """Return the error of a loader, or None if it reads what was saved."""
    if kind == "receipts":
        try:
            heads = [clf.receipts_[-1]["checksum"]]
            assert verify_receipts(folder / "receipts.jsonl", heads=heads) == clf.receipts_
        except StateFormatError as error:
            return error
        return None
    found = outcome(folder, key=KEY if kind == "encrypted" else None)
    if isinstance(found, FastNTKError):
        assert isinstance(found, StateFormatError)
        return found
    np.testing.assert_array_equal(found, clf.decision_function(X))
    return None


# damage


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(clf, kind, tmp_path):
    folder = save(clf, kind, tmp_path / kind)
    assert error_of(clf, kind, folder) is None
    draws = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        # half of the bits are among the first bytes, where lengths, names and shapes are
        early, anywhere = (draws.integers(8 * n, size=4) for n in (min(len(data), 2048), len(data)))
        for bit in map(int, [*early, *anywhere]):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            error_of(clf, kind, folder)
        header = 8 + int.from_bytes(data[:8], "little")
        for n_bytes in {0, 7, 8, header, len(data) // 2, len(data) - 2} & set(range(len(data))):
            path.write_bytes(data[:n_bytes])
            assert error_of(clf, kind, folder) is not None
        path.unlink()
        missing = error_of(clf, kind, folder)
        assert "private state" in str(missing) or "is missing" in str(missing)
        path.write_bytes(data)


# what is no file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("kind", ["state", "receipts"])
def test_what_is_no_file(clf, kind, tmp_path):
    folder = save(clf, kind, tmp_path / kind)
    path = sorted(folder.iterdir())[0]
    kept = shutil.move(path, tmp_path / "kept")
    for target in (kept, "/dev/zero", tmp_path / "no", path):
        path.symlink_to(target)
        assert error_of(clf, kind, folder) is not None
        path.unlink()
    os.mkfifo(path)
    assert error_of(clf, kind, folder) is not None
    path.unlink()
    path.mkdir()
    assert error_of(clf, kind, folder) is not None


# code


@pytest.mark.parametrize("kind", ["state", "encrypted"])
def test_a_pickle_is_not_opened(clf, tmp_path, kind):
    """Nor one under names, checksums and a key that fit."""
    trace = tmp_path / "trace"
    torch.save(Payload(trace), tmp_path / "zip")
    folder = save(clf, kind, tmp_path / "saved")
    for bomb in (pickle.dumps(Payload(trace)), (tmp_path / "zip").read_bytes()):
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            path.write_bytes(bomb)
            assert error_of(clf, kind, folder) is not None
            path.write_bytes(data)
    names = json.loads((folder / "manifest.json").read_text())["files"]
    data = encrypt(bomb, KEY) if kind == "encrypted" else bomb
    for part, name in names.items():
        forged = f"{part}-{files.checksum(data)}.{name.partition('.')[2]}"
        (folder / forged).write_bytes(data)
        hostile.write_state(folder, {}, files=names | {part: forged})
        assert isinstance(error_of(clf, kind, folder), StateFormatError)
    assert not trace.exists()


# JSON


@pytest.mark.parametrize("name", ODD)
def test_odd_json(clf, tmp_path, name):
    state = save(clf, "state", tmp_path / "state")
    (state / "manifest.json").write_bytes(ODD[name])
    (tmp_path / "receipts.jsonl").write_bytes(ODD[name])
    found = []
    assert peak(lambda: found.append(outcome(state))) < 8 * 40 * MIB
    assert isinstance(found[0], StateFormatError)
    with pytest.raises(ReceiptError):
        verify_receipts(tmp_path / "receipts.jsonl")


def test_unknown_keys_warn(saved, tmp_path):
    saved[STATE][0].write(tmp_path / "forged")
    manifest = json.loads((tmp_path / "forged" / "manifest.json").read_text()) | {"taste": 1}
    (tmp_path / "forged" / "manifest.json").write_text(json.dumps(hostile.checked(manifest)))
    with pytest.warns(UnknownKeyWarning, match="taste"):
        hostile.load(tmp_path / "forged")


def test_gigantic_files_are_not_read(clf, tmp_path):
    for kind, name, n_bytes, error in (
        ("state", "ledger-", 2**40, InsufficientMemoryError),
        ("receipts", "receipts.jsonl", 2**40, InsufficientMemoryError),
    ):
        folder = save(clf, kind, tmp_path / f"{kind}-{name}")
        with next(folder.glob(f"{name}*")).open("r+b") as file:
            file.truncate(n_bytes)

        receipts = folder / "receipts.jsonl"
        call = (
            partial(verify_receipts, receipts) if kind == "receipts" else partial(hostile.load, folder)
        )

        def read(call=call, error=error):
            with pytest.raises(error):
                call()

        assert peak(read) < 32 * MIB


# forgeries with checksums that fit


def test_names_in_the_manifest(clf, tmp_path):
    folder = save(clf, "state", tmp_path / "state")
    names = json.loads((folder / "manifest.json").read_text())["files"]
    shutil.copy(folder / names["ledger"], tmp_path)
    paths = [str(tmp_path / names["ledger"]), f"../{names['ledger']}", f"{names['ledger']}\n", "..", ""]
    for name in [*paths, names["ledger"].replace("safetensors", "pkl"), names["statistics"], None, 7]:
        hostile.write_state(folder, {}, files=names | {"ledger": name})
        assert isinstance(outcome(folder), StateFormatError), name
    for found in (None, [], "x", {}, {"adapter": names["adapter"]}):
        hostile.write_state(folder, {}, files=found)
        assert isinstance(outcome(folder), StateFormatError), found


@pytest.mark.parametrize("case", [STATE, ("finetuned", "state")])
def test_tensors_that_do_not_fit(saved, forge, case):
    strangers = {"x", "network.x", "anchor.x", "A", "probe", "1.label", ""}
    for part in ("statistics", "ledger"):
        tensors = getattr(saved[case][0], part) or {}
        wrong = [(name, None) for name in sorted(strangers - tensors.keys()) if tensors]
        wrong += [(name, what) for name in tensors for what in CHANGES]
        for name, what in wrong:

            def change(parts, part=part, name=name, what=what):
                found = getattr(parts, part)
                tensor = CHANGES[what](found[name]) if what else torch.ones(2, 3)
                found.pop(name, None)
                if tensor is not None:
                    found[name] = tensor

            assert isinstance(forge(case, change), NAMED), (name, what)


def test_ledgers_that_contradict_the_counts(forge):
    changes = [
        ("label", lambda t: t + 1),
        ("label", lambda t: t - 1),
        ("label", lambda t: t + 2**62),
        ("count", lambda t: t + 1),
        ("count", lambda t: t * 0),
        ("count", lambda t: t * (2**63 - 1)),
        ("weight", lambda t: -t),
        ("key", lambda t: t[:, :16].contiguous()),
    ]
    for column, values in changes:

        def change(parts, column=column, values=values):
            parts.ledger[f"0.{column}"] = values(parts.ledger[f"0.{column}"])

        assert isinstance(forge(STATE, change), StateFormatError), column

    def nobody(parts):
        parts.ledger = {name: t if name == "0.key" else t[:0] for name, t in parts.ledger.items()}
        parts.records["class_rows"] = [0, 0, 0]

    def another(parts):
        parts.ledger |= {name.replace("0.", "1."): t.clone() for name, t in parts.ledger.items()}

    for change in (nobody, another):
        assert isinstance(forge(STATE, change), StateFormatError), change


WRONG = {
    "records class_rows": [
        None,
        3,
        [3, 3],
        [3, 3, 4, 0],
        [3.5, 4, 3],
        [True, 4, 3],
        [-1, 5, 6],
        [2**70],
    ],
    "records environment": [None, [], "x86_64"],
    "records chain": [None, 7, "x" * 65, ["x"]],
    "records residual": ["0", [], True],
    "records seconds_per_row": [None, "0"],
    "records history": [None, {}, [1], "x"],
    "records linearity": ["0", {}],
}


def test_values_that_no_estimator_writes(forge):
    for path, values in WRONG.items():
        for value in values:
            assert isinstance(forge(STATE, put(path, value)), NAMED), (path, value)


def test_receipts_of_wrong_types(forge):
    for key in ("n_rows", "exactness", "seen_by", "chain", "previous", "checksum"):
        for value in (None, -1, {}, [7]):

            def change(parts, key=key, value=value):
                receipt = parts.receipts[0] | {key: value}
                parts.receipts = [receipt if key == "checksum" else hostile.checked(receipt)]

            assert isinstance(forge(STATE, change), ReceiptError), (key, value)
