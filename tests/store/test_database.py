"""Rows of the database are what was written, and nothing of those that are gone is in the file."""

import secrets

import numpy as np
import pytest

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.inputs import content
from fastntk_sk.exceptions import StateFormatError
from fastntk_sk.store.database import connect
from fastntk_sk.store.packing import packed_triangle

WINDOW = 8


def windows(content):
    return {content[i : i + WINDOW] for i in range(len(content) - WINDOW + 1)}


def found_in(data, contents):
    """Return how many windows of some contents, none of which is empty, are in the bytes of a file."""
    held = windows(data)
    return sum(bool(window.strip(b"\0")) and window in held for c in contents for window in windows(c))


@pytest.mark.parametrize("seed", range(3))
def test_rows_against_a_dict(tmp_path, seed):
    """Rows are blanked, not deleted: SQLite leaves copies of what it has moved to another page.

    With DELETE, 5 of 23,116 deleted digests were still in the file, although secure_delete was on.
    """
    file, random = tmp_path / "file", np.random.default_rng(seed)
    ledger, pieces, receipts, gone, last = {}, {}, [], [], 0
    for turn in range(25):
        with connect(file, None, write=True, make=True) as db:
            for _ in range(random.integers(1, 4)):
                action = random.choice(["append", "blank", "write", "replace"])
                if action == "append":
                    rows = [
                        (0, secrets.token_bytes(32), secrets.token_bytes(32) * bool(i % 2), i, 0.5, 1)
                        for i in range(random.integers(300))
                    ]
                    db.append("ledger", iter(rows))
                    ledger |= dict(enumerate(rows, last + 1))
                    last += len(rows)
                elif action == "blank" and ledger:
                    numbers = random.permutation([*ledger])[: random.integers(200)].tolist()
                    db.blank("ledger", iter(numbers))
                    rows = [ledger.pop(number) for number in numbers]
                    gone += [digest for row in rows for digest in row[1:3]]
                elif action == "write":
                    before = dict(pieces)
                    for name in random.choice(["a", "b", "c"], 2, replace=False).tolist():
                        size = random.choice([0, 10, 500, 30_000])
                        pieces[name] = secrets.token_bytes(size)
                    if random.random() < 0.3:
                        pieces.pop("c", None)
                    db.write("statistics", pieces)
                    gone += [c for name, c in before.items() if pieces.get(name) != c]
                elif action == "replace":
                    kept = receipts[: random.integers(len(receipts) + 1)]
                    gone += receipts[len(kept) :]
                    receipts = [*kept, *(secrets.token_bytes(60) for _ in range(random.integers(5)))]
                    db.replace("receipts", [(receipt,) for receipt in receipts])
        with connect(file, None) as db:
            db.check()
            assert dict(db.rows("ledger")) == ledger
            assert [receipt for _, (receipt,) in db.rows("receipts")] == receipts
            assert db.read("statistics") == pieces
        assert [*tmp_path.iterdir()] == [file]
        if turn % 6 == 0:
            assert found_in(file.read_bytes(), gone) == 0
    assert len(gone) > 300
    kept = [digest for row in ledger.values() for digest in row[1:3] if digest]
    assert found_in(file.read_bytes(), kept) == len(kept) * (32 - WINDOW + 1)  # it would have been found


def test_rows_are_put_in_the_order_that_was_given(tmp_path):
    for rows in ([1, 2, 3], [3, 2, 1], [3, 2], [0, 3, 2], [], [2, 2]):
        with connect(tmp_path / "file", None, write=True, make=True) as db:
            db.replace("segments", [(row, b"") for row in rows])
            assert [values[0] for _, values in db.rows("segments")] == rows


def test_large_contents_lie_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("fastntk_sk.store.database._PIECE", 1000)
    contents = {"a": secrets.token_bytes(3500), "b": b"", "c": np.arange(500.0)}
    for size in (3500, 2000, 0, 2001):
        contents["a"] = contents["a"][:size] or bytes(size)
        with connect(tmp_path / "file", None, write=True, make=True) as db:
            db.write("model", contents)
            assert db.read("model") == contents | {"c": contents["c"].tobytes()}
            db.append("model", [("c", 1, b"x"), ("c", 1, bytes(1000))])  # which only a forger does
    with connect(tmp_path / "file", None, write=True, make=True) as db:
        db.write("model", contents)
        number = next(n for n, (name, piece, _) in db.rows("model") if (name, piece) == ("c", 1))
        db.blank("model", [number])
        with pytest.raises(StateFormatError, match="whole 'c'"):
            db.read("model")


def test_an_error_undoes_what_was_written(tmp_path):
    file = tmp_path / "file"
    with connect(file, None, write=True, make=True) as db:
        db.append("receipts", [(b"a",)])

    def fail():
        with connect(file, None, write=True, make=True) as db:
            db.append("receipts", [(b"b",)])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with connect(file, None) as db:
        assert [*db.rows("receipts")] == [(1, (b"a",))]


def test_nothing_of_a_forgotten_row_stays_in_the_file(tmp_path):
    """Many rows, in rounds of learning and forgetting: no part of a digest, nor of the sums before."""
    file, draws = tmp_path / "state", np.random.default_rng(0)
    X, y = draws.normal(size=(2400, 4)).astype(np.float32), np.arange(2400) % 3
    clf = FastNTKClassifier(n_components=64, random_state=0, alpha=0.1)
    ids = lambda rows: [f"person {row}" for row in rows]  # noqa: E731
    left, forgotten, before = list(range(1200)), [], set()
    clf.fit(X[left], y[left], sample_ids=ids(left)).save(file)
    for start in range(1200, 2400, 400):
        asked = draws.permutation(left)[:500].tolist()
        segment = clf._private.ledger.segments[0]
        forgotten += [segment.digest(content(x)) for x in X[asked]]
        forgotten += [segment.owner(name) for name in ids(asked)]
        assert found_in(file.read_bytes(), forgotten[-50:]) == 50 * (32 - WINDOW + 1)
        before |= numbers(clf)
        clf.unlearn(X[asked], sample_ids=ids(asked)).save(file)
        rows = list(range(start, start + 400))
        clf.partial_fit(X[rows], y[rows], sample_ids=ids(rows)).save(file)
        left = [row for row in left if row not in set(asked)] + rows
        assert [*tmp_path.iterdir()] == [file]  # no journal
        data = file.read_bytes()
        assert found_in(data, forgotten) == 0
        assert not (before - numbers(clf)) & windows(data)
    assert len(forgotten) == 2 * 3 * 500
    again = FastNTKClassifier.load(file)
    assert again.n_samples_learned_ == len(left)
    assert again.can_unlearn(X[left[1:]])["n_rows"] == len(left) - 1


def numbers(clf):
    """Return the sums of a classifier as they lie in a file, without what is nearly zero or round."""
    sums = clf._private.state.statistics.tensors()
    packed = packed_triangle(sums["A"]).tobytes() + sums["H"].numpy().tobytes()
    found = {packed[i : i + WINDOW] for i in range(0, len(packed), WINDOW)}
    return {number for number in found if len(set(number)) > 5}
