"""Damaged and forged private states: each is a named error, and nothing is executed or allocated."""

import os
import pickle
import shutil
import sqlite3
from functools import partial

import hostile
import numpy as np
import pytest
import torch
from hostile import CHANGES, KEY, MIB, NAMED, ODD, STATE, Payload, X, fitted, outcome, peak, put, tiny

from fastntk_sk import FastNTKClassifier, Requests, verify_receipts
from fastntk_sk.exceptions import (
    DecryptionError,
    FastNTKError,
    InsufficientMemoryError,
    ReceiptError,
    StateFormatError,
    StateWriteError,
    UnknownKeyWarning,
)
from fastntk_sk.store.database import APPLICATION_ID, SCHEMA, TABLES, connect

KINDS = ("state", "encrypted", "receipts")


@pytest.fixture(scope="module")
def clf():
    return fitted()


@pytest.fixture(scope="module")
def expected(clf, tmp_path_factory):
    """What the estimator of a file must share with the one that was saved."""
    file = tmp_path_factory.mktemp("expected") / "state"
    clf.save(file, overwrite=True)
    return hostile.everything(hostile.load(file))


def save(clf, kind, file):
    """Write what one loader reads."""
    if kind == "receipts":
        clf.export_receipts(file)
    else:
        clf._mark = None
        clf.save(file, key=KEY if kind == "encrypted" else None)
    return file


def error_of(clf, expected, kind, file):
    """Return the error of a loader, or None if it reads exactly what was saved."""
    try:
        if kind == "receipts":
            assert verify_receipts(file, adapter=clf) == clf.receipts_
        else:
            found = hostile.load(file, key=KEY if kind == "encrypted" else None)
            assert hostile.everything(found)[0::2] == expected[0::2]
            assert found.receipts_[:-1] == clf.receipts_
    except StateFormatError as error:
        return error
    return None


# damage


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(clf, expected, kind, tmp_path):
    file = save(clf, kind, tmp_path / "file")
    assert error_of(clf, expected, kind, file) is None
    data, draws = file.read_bytes(), np.random.default_rng(0)
    # half of the bits are among the first bytes, where lengths, names and shapes are
    early, anywhere = (draws.integers(8 * n, size=20) for n in (min(len(data), 2048), len(data)))
    for bit in map(int, [*early, *anywhere]):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        error_of(clf, expected, kind, file)
    for n_bytes in {0, 7, 16, 100, 512, 4096, len(data) // 2, len(data) - 2} & set(range(len(data))):
        file.write_bytes(data[:n_bytes])
        # the last page is of a table without rows, in which nothing is lost
        assert error_of(clf, expected, kind, file) is not None or n_bytes > len(data) - 4096
    file.unlink()
    assert error_of(clf, expected, kind, file) is not None


def test_a_schema_that_is_no_text(clf, tmp_path):
    file = save(clf, "state", tmp_path / "file")
    data = file.read_bytes()
    for old, new in ((b"receipts", b"rece\xb3pts"), (b"CREATE TABLE saves", b"CREATE T\xb3BLE saves")):
        file.write_bytes(data.replace(old, new))
        assert isinstance(outcome(file), StateFormatError)


def test_a_save_to_a_damaged_file_is_refused_or_whole(clf, tmp_path):
    file = save(clf, "state", tmp_path / "file")
    data, draws, mark = bytearray(file.read_bytes()), np.random.default_rng(0), clf._mark
    again = hostile.load(file).unlearn(X[2:4])
    scores, n_refused, n_pages = again.decision_function(X), 0, len(data) // 4096
    for _ in range(30):
        # among the first bytes of a page are its counts and places
        changed, where = bytearray(data), int(draws.integers(n_pages)) * 4096 + int(draws.integers(100))
        changed[where] ^= int(draws.integers(1, 256))
        file.write_bytes(changed)
        again._mark = mark
        try:
            again.save(file)
        except StateFormatError:
            n_refused += 1
        else:
            np.testing.assert_array_equal(outcome(file), scores)
    assert n_refused >= 5


def test_pages_of_an_earlier_save_do_not_fit(clf, tmp_path):
    """Who has no key can put back all pages of an encrypted file, which is a backup, but not some."""
    file = save(clf, "encrypted", tmp_path / "file")
    before = file.read_bytes()
    hostile.load(file, key=KEY).unlearn(X[2:5]).save(file, key=KEY)
    after, size = file.read_bytes(), 4096
    assert len(after) >= len(before)
    whole = [hostile.everything(hostile.load(file, key=KEY))]
    file.write_bytes(before)
    whole.append(hostile.everything(hostile.load(file, key=KEY)))
    old, errors = range(0, len(before), size), []
    changed = [i for i in old if before[i : i + size] != after[i : i + size]]
    for restored in [*([i] for i in changed), *([j for j in old if j != i] for i in changed)]:
        mixed = bytearray(after)
        for i in restored:
            mixed[i : i + size] = before[i : i + size]
        file.write_bytes(mixed)
        try:
            found = hostile.everything(hostile.load(file, key=KEY))
        except StateFormatError as error:
            errors.append(error)
        else:  # a page of which nothing is read
            assert [found[0], found[2:]] in [[state[0], state[2:]] for state in whole]
    assert len(errors) >= 2 * (len(changed) - 1)
    assert any("different saves" in str(error) for error in errors)


def test_sums_of_an_earlier_save_do_not_fit(clf, tmp_path):
    file = save(clf, "state", tmp_path / "file")
    with connect(file, None) as db:
        old = db.read("statistics")
    again = hostile.load(file)
    again.unlearn(X[2:5]).save(file)
    with connect(file, None, write=True) as db:
        db.write("statistics", old)  # with checksums that fit each row
    assert "different saves" in str(outcome(file))


# what is no state


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_what_is_no_file(clf, tmp_path):
    file = tmp_path / "state"
    for target in ("/dev/zero", tmp_path / "no", file):
        file.symlink_to(target)
        assert isinstance(outcome(file), StateFormatError)
        file.unlink()
    os.mkfifo(file)
    for call in (hostile.load, clf.save):
        with pytest.raises(StateFormatError, match="file"):
            call(file)
    file.unlink()
    for call in (partial(FastNTKClassifier.load, tmp_path), partial(clf.save, tmp_path)):
        with pytest.raises(StateFormatError, match="folder"):
            call()
    with pytest.raises(StateFormatError, match="no file"), FastNTKClassifier.open(file):
        pass
    for inside in (tmp_path / "file" / "state", tmp_path / ("x" * 300)):
        (tmp_path / "file").touch()
        with pytest.raises((StateWriteError, OSError)):
            clf.save(inside)


@pytest.mark.parametrize("content", [b"xy", b"SQLite format 3\0", bytes(5000), b"a note\n" * 1000])
def test_other_files_are_left_alone(clf, tmp_path, content):
    file = tmp_path / "notes"
    file.write_bytes(content)
    for key in (None, KEY):
        for overwrite in (False, True):
            assert isinstance(outcome(file, key=key), StateFormatError)
            with pytest.raises(StateFormatError):
                clf.save(file, key=key, overwrite=overwrite)
    assert file.read_bytes() == content
    assert [*tmp_path.iterdir()] == [file]


def test_names_that_sqlite_reads_otherwise(clf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "file:state?mode=memory", "a?b#c%20d'\";--"):
        save(clf, "state", tmp_path / name)
        clf._mark = None
        clf.save(name, overwrite=True)
        assert FastNTKClassifier.load(name, backbone=tiny).receipts_ == clf.receipts_
        assert (tmp_path / name).stat().st_size > 4096


SCHEMAS = {
    "a trigger": "CREATE TRIGGER t AFTER UPDATE ON ledger BEGIN INSERT INTO receipts VALUES "
    "(NULL, NULL, old.digest); END",
    "a view": "CREATE VIEW v AS SELECT * FROM ledger",
    "a view for a table": "ALTER TABLE ledger RENAME TO l; CREATE VIEW ledger AS SELECT * FROM l",
    "an index": "CREATE INDEX i ON ledger (digest)",
    "another table": "CREATE TABLE other (x)",
    "a column more": "ALTER TABLE ledger ADD COLUMN name TEXT",
    "a column less": "ALTER TABLE ledger DROP COLUMN owner",
    "a table less": "DROP TABLE receipts",
    "no tables": "".join(f"DROP TABLE {table};" for table in TABLES),
    "a later version": f"PRAGMA user_version = {SCHEMA + 1}",
    "no version": "PRAGMA user_version = 0",
    "another application": "PRAGMA application_id = 7",
    "no application": "PRAGMA application_id = 0",
    "a damaged schema": "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE x'",
    "a page twice": "PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 3",
    "no rows": "".join(f"DELETE FROM {table};" for table in TABLES),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_foreign_schemas(clf, tmp_path, name):
    file = save(clf, "state", tmp_path / "state")
    connection = sqlite3.connect(file)
    connection.executescript(SCHEMAS[name])
    connection.commit()
    connection.close()
    assert isinstance(outcome(file), StateFormatError)
    if name not in ("no rows", "a page twice"):
        with pytest.raises(StateFormatError):
            clf.save(file, overwrite=True)


def test_a_trigger_under_the_name_of_a_table(clf, tmp_path):
    """Triggers have names of their own: SQLite takes one that is called as a later table."""
    file = tmp_path / "state"
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.close()
    save(clf, "state", tmp_path / "whole")
    whole = sqlite3.connect(tmp_path / "whole")
    statements = [sql for (sql,) in whole.execute("SELECT sql FROM sqlite_master")]
    whole.close()
    trigger = "CREATE TRIGGER receipts AFTER UPDATE ON saves BEGIN SELECT 1; END"
    connection = sqlite3.connect(file)
    for sql in [statements[0], trigger, *statements[1:]]:
        connection.execute(sql)
    connection.commit()
    connection.close()
    with pytest.raises(StateFormatError, match="other tables"):
        clf.save(file, overwrite=True)


def test_a_wal_file_loads_and_is_saved(clf, tmp_path):
    file = save(clf, "state", tmp_path / "state")
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    again = hostile.load(file)
    again.unlearn(X[2:3]).save(file)
    assert [*tmp_path.iterdir()] == [file]
    assert hostile.load(file).receipts_ == again.receipts_


# code


@pytest.mark.parametrize("kind", ["state", "encrypted"])
def test_a_pickle_is_not_opened(clf, tmp_path, kind):
    """Nor one under names, checksums and a key that fit."""
    trace = tmp_path / "trace"
    torch.save(Payload(trace), tmp_path / "zip")
    key = KEY if kind == "encrypted" else None
    for bomb in (pickle.dumps(Payload(trace)), (tmp_path / "zip").read_bytes()):
        (tmp_path / "file").write_bytes(bomb)
        assert isinstance(outcome(tmp_path / "file", key=key), StateFormatError)
        for table, name in [("model", n) for n in ("adapter", "records", "tensors")] + [
            ("statistics", "A")
        ]:
            file = save(clf, kind, tmp_path / f"{name}-{len(bomb)}")
            with connect(file, key, write=True) as db:
                db.write(table, db.read(table) | {name: bomb})
                hostile.seal(db)
            assert isinstance(outcome(file, key=key), StateFormatError)
    with connect(file, key, write=True) as db:
        db.append("receipts", [(bomb,)])
        hostile.seal(db)
    assert isinstance(outcome(file, key=key), StateFormatError)
    assert not trace.exists()


# JSON


@pytest.mark.parametrize("name", ODD)
def test_odd_json(saved, tmp_path, name):
    parts, found = saved[STATE][0].copy(), []
    file = parts.write(tmp_path / "records", records=ODD[name])
    assert peak(lambda: found.append(outcome(file))) < 8 * 40 * MIB
    (tmp_path / "receipts.jsonl").write_bytes(ODD[name])
    with connect(parts.write(tmp_path / "chain"), None, write=True) as db:
        db.append("receipts", [(ODD[name],)])
        hostile.seal(db)
    found.append(outcome(tmp_path / "chain"))
    assert [isinstance(error, StateFormatError) for error in found] == [True, True]
    with pytest.raises(ReceiptError):
        verify_receipts(tmp_path / "receipts.jsonl")


def test_unknown_keys_warn(saved, tmp_path):
    parts = saved[STATE][0].copy()
    parts.records["taste"] = 1
    with pytest.warns(UnknownKeyWarning, match="taste"):
        hostile.load(parts.write(tmp_path / "forged"))


def test_gigantic_files_are_not_read(clf, tmp_path):
    for kind, call in (("state", hostile.load), ("receipts", verify_receipts)):
        file = save(clf, kind, tmp_path / kind)
        with file.open("r+b") as opened:
            opened.truncate(2**40)

        def read(call=call, file=file):
            with pytest.raises(InsufficientMemoryError):
                call(file)

        assert peak(read) < 32 * MIB


# forgeries with checksums that fit


@pytest.mark.parametrize("case", [STATE, ("finetuned", "state")])
def test_tensors_that_do_not_fit(saved, forge, case):
    for part in ("tensors", "own"):
        tensors = getattr(saved[case][0], part)
        strangers = {"x", "network.x", "anchor.x", "A", "probe", ""}
        wrong = [(name, None) for name in sorted(strangers - tensors.keys())]
        wrong += [(name, what) for name in tensors for what in CHANGES]
        for name, what in wrong:
            if part == "tensors" and case == ("finetuned", "state") and name.startswith("network."):
                continue  # what is published says nothing that the private anchor does not

            def change(parts, part=part, name=name, what=what):
                found = getattr(parts, part)
                tensor = CHANGES[what](found[name]) if what else torch.ones(2, 3)
                found.pop(name, None)
                if tensor is not None:
                    found[name] = tensor
                parts.with_tensors()

            assert isinstance(forge(case, change), NAMED), (name, what)


def test_sums_that_do_not_fit(saved, forge):
    nan = np.full(1, np.nan).tobytes()
    for name in (*saved[STATE][0].statistics, "x", ""):
        for content in (b"", b"x", bytes(8), nan, None):

            def change(parts, name=name, content=content):
                old = parts.statistics.pop(name, b"")
                if content is not None:
                    parts.statistics[name] = content if content != nan else nan + old[8:]
                elif not old:
                    parts.statistics["y"] = b""

            if saved[STATE][0].statistics.get(name) != content:
                assert isinstance(forge(STATE, change), StateFormatError), (name, content)


# of the columns segment, digest, owner, label, weight and copies
ROWS = {
    0: [None, -1, 1, 2**62, "0"],
    1: [None, b"", b"x" * 31, "x" * 32, 7],
    2: [None, b"x", "x" * 32, 7],
    3: [None, -1, 3, 2**62, "0", b"0"],
    4: [None, -1.0, 0.0, float("inf"), "1", b"1"],
    5: [None, -1, 0, 2, 2**62, "1"],
}


def test_rows_of_the_ledger_that_contradict_the_counts(forge):
    for column, values in ROWS.items():
        for value in values:

            def change(parts, column=column, value=value):
                parts.ledger[0][column] = value

            assert isinstance(forge(STATE, change), StateFormatError), (column, value)

    def nobody(parts):
        parts.ledger, parts.records["class_rows"] = [], [0, 0, 0]

    def twice(parts):
        parts.ledger.append(parts.ledger[0])

    def no_key(parts):
        parts.segments = []

    for change in (nobody, twice, no_key):
        assert isinstance(forge(STATE, change), StateFormatError), change
    for key in (None, b"", b"x" * 31, "x" * 32, 7):
        assert isinstance(forge(STATE, lambda parts, key=key: put_key(parts, key)), StateFormatError)
    another = lambda parts: parts.segments.append([1, parts.segments[0][1]])  # noqa: E731
    assert isinstance(forge(STATE, another), StateFormatError)


def put_key(parts, key):
    parts.segments[0][1] = key


@pytest.mark.parametrize("table", TABLES)
def test_rows_of_any_table(clf, tmp_path, table):
    """A value that is missing, of another type or far too large, under a checksum that fits it."""
    if table in ("features", "ids"):
        clf = fitted(trainable="head", keep="features")
    file = save(clf, "state", tmp_path / "state")
    if table == "requests":
        Requests(file).add("Anna", sample_ids=["a"])
    data = file.read_bytes()
    for column in range(len(TABLES[table])):
        for value in (None, 2**63 - 1, -1, "", "\0", b"", b"x" * 10_000, 1e308):
            file.write_bytes(data)
            with connect(file, None, write=True) as db:
                number, row = next(iter(db.rows(table)))
                db.blank(table, [number])
                db.append(table, [[*row[:column], value, *row[column + 1 :]]])
                if table != "saves":
                    hostile.seal(db)
            found = outcome(file)
            if table == "requests":
                found = None
                try:
                    requests = Requests(file).all()
                except FastNTKError as error:
                    found = error
                if found is None and isinstance(value, str) and column not in (1, 4, 7, 8):
                    assert len(requests) == 1
                    continue  # any text will do
            if (table, column, value) in {("ledger", 2, b""), ("ledger", 4, 1e308)}:
                continue  # nobody's id, and a weight
            if (table, column) == ("saves", 0) and value in (2**63 - 1, -1):
                continue  # it counts saves
            if (table, column) == ("saves", 1) and isinstance(value, bytes):
                continue  # it only names one
            assert isinstance(found, NAMED), (column, value)


def test_a_row_beyond_all_numbers(clf, tmp_path):
    file = save(clf, "state", tmp_path / "state")
    connection = sqlite3.connect(file)
    connection.execute(f"INSERT INTO ledger (row) VALUES ({2**63 - 1})")
    connection.commit()
    connection.close()
    again = hostile.load(file)
    with pytest.raises(FastNTKError):
        again.partial_fit(X[:1] + 1, [0]).save(file)
    assert isinstance(outcome(file), np.ndarray)


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
    for key in ("n_rows", "n_rectified", "exactness", "seen_by", "chain", "previous", "checksum"):
        for value in (None, -1, {}, [7]):

            def change(parts, key=key, value=value):
                receipt = parts.receipts[0] | {key: value}
                parts.receipts = [receipt if key == "checksum" else hostile.checked(receipt)]

            assert isinstance(forge(STATE, change), ReceiptError), (key, value)

    def rectify_more(parts):
        n_rows = parts.receipts[0]["n_rows"]
        parts.receipts = [hostile.checked(parts.receipts[0] | {"n_rectified": n_rows + 1})]

    assert isinstance(forge(STATE, rectify_more), ReceiptError)


def test_missing_receipts_are_noticed(forge):
    for kept in (slice(0), slice(1)):

        def change(parts, kept=kept):
            parts.receipts = parts.receipts[kept]

        assert "other receipts" in str(forge(STATE, change))


@pytest.mark.parametrize("key", ["no", bytes(32), None])
def test_a_journal_survives_a_key_that_is_wrong(clf, tmp_path, key):
    """What a killed process left is undone whoever opens the file next, and opens with its key."""
    file = save(clf, "encrypted", tmp_path / "state")
    copied = tmp_path / "copy"
    with connect(file, KEY, write=True) as db:
        db._change("PRAGMA cache_spill = 1", [()])
        db._change("PRAGMA cache_size = 1", [()])
        db.write("statistics", {"A": b"x" * 10**6})
        for end in ("", "-journal"):
            shutil.copy(f"{file}{end}", f"{copied}{end}")
    assert copied.read_bytes() != file.read_bytes()[: copied.stat().st_size]
    assert isinstance(outcome(copied, key=key), DecryptionError)
    assert isinstance(outcome(copied, key=KEY), np.ndarray)
