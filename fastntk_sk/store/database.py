"""One SQLite file: rows that are appended, or blanked where they lie, and checked when they are read.

`secure_delete` overwrites what is deleted, but not the copies that SQLite leaves when it moves a row to
another page. So no row is ever moved: one that changes or goes is blanked in place, which only shortens
it, and a new one is appended; a piece that keeps its length is overwritten.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from ..exceptions import DecryptionError, StateFormatError, StateLockedError, StateWriteError
from ..publishing import files
from ..sums.memory import require

APPLICATION_ID = int.from_bytes(b"fntk")
SCHEMA = 1
TABLES = {
    "saves": ("generation INTEGER", "stamp BLOB", "seal BLOB"),
    "model": ("name TEXT", "piece INTEGER", "value BLOB"),
    "statistics": ("name TEXT", "piece INTEGER", "value BLOB"),
    "segments": ("segment INTEGER", "key BLOB"),
    "ledger": (
        "segment INTEGER",
        "digest BLOB",
        "owner BLOB",
        "label INTEGER",
        "weight REAL",
        "copies INTEGER",
    ),
    "features": ("segment INTEGER", "digest BLOB", "value BLOB"),
    "ids": ("segment INTEGER", "owner BLOB", "kind TEXT", "sample_id TEXT"),
    "receipts": ("receipt BLOB",),
    "requests": (
        "request_id TEXT",
        "state TEXT",
        "subject TEXT",
        "received TEXT",
        "due TEXT",
        "closed TEXT",
        "note TEXT",
        "names TEXT",
        "files TEXT",
        "receipt TEXT",
        "n_rows INTEGER",
        "n_unknown INTEGER",
        "reason TEXT",
    ),
}
_KINDS = {"INTEGER": int, "REAL": float, "TEXT": str, "BLOB": bytes}
_PIECE = 64 * 2**20  # SQLite holds at most 1 GB in one value
_HEADER = b"SQLite format 3\0"
_SETTINGS = (
    "secure_delete = ON",
    "synchronous = EXTRA",  # a journal that comes back after a power cut would undo the deletion
    "temp_store = MEMORY",
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "mmap_size = 0",
)
_OPEN: dict[tuple[int, int], list[bool]] = {}  # by device and inode: has each connection of here a key?
_REGISTER = threading.Lock()


class Database:
    """A transaction on one file; see `connect`."""

    def __init__(self, connection: Any, path: Path, key: bytes | str | None) -> None:
        self._connection, self._path, self._key = connection, path, key
        self._name, self._cursors = path.name, list[Any]()

    def check(self) -> None:
        """Raise StateFormatError unless the file's pages are in order."""
        (verdict, *_), *_ = self._fetch("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise StateFormatError(
                f"{self._name} is damaged: {verdict}. Restore a backup, or save to another file and "
                "delete this one."
            )

    def seal(self) -> bytes:
        """Return a checksum of the rows of a state: those of two saves do not fit together."""
        state = hashlib.blake2b(digest_size=16)
        for table in sorted(TABLES.keys() - {"saves", "requests"}):
            query = f"SELECT checksum FROM {table} WHERE checksum NOT NULL ORDER BY row"
            state.update(b"".join(checksum for (checksum,) in self._fetch(query)))
        return state.digest()

    def rows(self, table: str) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield the number and the values of each row, in the order in which they were appended.

        Raises
        ------
        StateFormatError
            If a row is not what was written.
        """
        kinds = [_KINDS[column.split()[1]] for column in TABLES[table]]
        for row, checksum, *values in self._fetch(f"SELECT * FROM {table} ORDER BY row"):
            if checksum is None and not any(value is not None for value in values):
                continue  # blanked
            if [*map(type, values)] != kinds or checksum != row_checksum(table, row, values):
                raise StateFormatError(
                    f"Row {row} of the table {table!r} in {self._name} is not what was written. Restore "
                    "a backup."
                )
            yield row, tuple(values)

    def index(self, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
        """Yield some columns of the rows that were not blanked, unchecked: for those of large values."""
        yield from self._fetch(f"SELECT {columns} FROM {table} WHERE checksum NOT NULL")

    def append(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows behind those that are there."""
        ((last,),) = self._fetch(f"SELECT coalesce(max(row), 0) FROM {table}")
        marks = ", ".join("?" * (len(TABLES[table]) + 2))
        self._change(
            f"INSERT INTO {table} VALUES ({marks})",
            ((n, row_checksum(table, n, row), *row) for n, row in enumerate(rows, last + 1)),
        )

    def blank(self, table: str, numbers: Iterable[int]) -> None:
        """Erase rows; their numbers are not used again."""
        columns = ", ".join(f"{name} = NULL" for name in ("checksum", *_names(table)))
        self._change(f"UPDATE {table} SET {columns} WHERE row = ?", ((number,) for number in numbers))

    def replace(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Let a small table hold these rows in this order; the first of them may stay where they are."""
        n_kept, gone = 0, []
        for number, values in self.rows(table):
            if n_kept < len(rows) and values == rows[n_kept]:
                n_kept += 1
            else:
                gone.append(number)
        self.blank(table, gone)
        self.append(table, rows[n_kept:])

    def write(self, table: str, contents: dict[str, Any]) -> None:
        """Let a table of pieces hold these contents, bytes or buffers, by name."""
        found = self.index(table, "row, name, piece, length(value)")
        there = {row: (name, piece, size) for row, name, piece, size in found}
        numbers = {fits: row for row, fits in there.items()}
        for name, content in contents.items():
            view = memoryview(content).cast("B")
            for piece, start in enumerate(range(0, max(1, len(view)), _PIECE)):
                value = bytes(view[start : start + _PIECE])
                row = numbers.get((name, piece, len(value)))
                if row is None:
                    self.append(table, [(name, piece, value)])
                    continue
                self._change(
                    f"UPDATE {table} SET value = ?, checksum = ? WHERE row = ?",
                    [(value, row_checksum(table, row, (name, piece, value)), row)],
                )
                del there[row]
        self.blank(table, there)

    def read(self, table: str) -> dict[str, bytes]:
        """Return what `write` was given."""
        pieces: dict[str, list[tuple[int, bytes]]] = {}
        for _, (name, piece, value) in self.rows(table):
            pieces.setdefault(name, []).append((piece, value))
        for name, found in pieces.items():
            found.sort()
            if [piece for piece, _ in found] != [*range(len(found))]:
                raise StateFormatError(f"{self._name} holds no whole {name!r}. Restore a backup.")
        return {name: b"".join(value for _, value in found) for name, found in pieces.items()}

    def _fetch(self, query: str) -> Iterator[tuple[Any, ...]]:
        with _naming(self._path, self._key):
            self._cursors.append(self._connection.execute(query))
            for row in self._cursors[-1]:  # noqa: UP028 - that would close the cursor, perhaps late
                yield row

    def _change(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        with _naming(self._path, self._key):
            self._connection.executemany(statement, rows)

    def close(self) -> None:
        """End what is still read: the frames of an error would keep the file locked."""
        for cursor in self._cursors:
            cursor.close()


@contextmanager
def connect(
    path: Path,
    key: bytes | str | None,
    *,
    write: bool = False,
    make: bool = False,
    timeout: float = 60.0,
) -> Iterator[Database]:
    """Open a file for one transaction, which is committed at the end, or undone by an error.

    Who writes keeps others from writing meanwhile; they wait for `timeout` seconds. With `make`, a file
    that is missing is made.

    Raises
    ------
    StateFormatError
        If there is no such file, or it is no database of this library, or a damaged one.

    DecryptionError
        If the key does not fit, is missing, or is given for a file that is not encrypted.

    StateLockedError
        If another process or thread has held the file for too long.

    StateWriteError
        If the disk is full or the place cannot be written; the file is as it was.

    ValueError
        If the key is neither 32 bytes nor text.
    """
    failure = None
    with _connection(path, key, write, make, timeout) as connection:
        if write:
            connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        _check_schema(connection, path, write)
        database = Database(connection, path, key)
        try:
            yield database
        except Exception as error:  # of the block: raised as it is, when everything was undone
            failure = error
        finally:
            database.close()
        if failure is None:
            connection.execute("COMMIT")
    if failure is not None:
        raise failure


def rekey(path: Path, key: bytes | str, new_key: bytes | str) -> None:
    """Encrypt a file with another key; see :meth:`FastNTKClassifier.rekey`."""
    if None in (key, new_key):
        raise ValueError(
            "Expected the key and another one, got None. What is not encrypted is loaded and saved to "
            "another file with a key; what is encrypted stays so."
        )
    check_key(new_key)
    with connect(path, key):
        pass
    with _connection(path, key) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")  # which keeps the lock: rekey makes its own transaction
        connection.execute(f"PRAGMA rekey = {_quoted(new_key)}")


@contextmanager
def _connection(
    path: Path,
    key: bytes | str | None,
    write: bool = False,
    make: bool = False,
    timeout: float = 60.0,
) -> Iterator[Any]:
    """Open a file, and raise what SQLite raises as errors of this library."""
    driver = _driver(key)
    with _REGISTER:
        place = _check_file(path, key, write, make)
        _OPEN.setdefault(place, []).append(key is not None)
    try:
        with _naming(path, key):
            # an absolute path is never ":memory:" or a URI
            connection = driver.connect(path.absolute(), timeout=timeout, isolation_level=None)
            try:
                if key is not None:
                    connection.execute("PRAGMA cipher_log_level = NONE").fetchall()
                    connection.execute(f"PRAGMA key = {_quoted(key)}").fetchall()
                for setting in _SETTINGS:
                    connection.execute(f"PRAGMA {setting}").fetchall()
                yield connection
            finally:
                connection.close()  # which undoes what was not committed
    finally:
        with _REGISTER:
            _OPEN[place].pop()
            if not _OPEN[place]:
                del _OPEN[place]


@contextmanager
def _naming(path: Path, key: bytes | str | None) -> Iterator[None]:
    """Raise what SQLite raises as an error that says what to do."""
    try:
        yield
    except (_driver(key).Error, OverflowError, UnicodeDecodeError) as error:  # of damaged numbers, names
        raise _named(error, path, key) from error


def check_key(key: Any) -> None:
    """Raise ValueError unless a key is None, 32 bytes or text."""
    if key is None or (isinstance(key, bytes) and len(key) == 32):
        return
    if isinstance(key, str) and key and "\0" not in key:
        return
    got = f"{len(key)} of them" if isinstance(key, (bytes, str)) else type(key).__name__
    raise ValueError(
        f"Expected key to be 32 bytes (secrets.token_bytes(32)) or a passphrase (str), got {got}. Keep "
        "it apart from the file: without it, nobody can read the state."
    )


def _driver(key: bytes | str | None) -> ModuleType:
    """Return the module that opens a file: SQLCipher's where there is a key."""
    check_key(key)
    if key is None:
        return sqlite3
    try:
        from sqlcipher3 import dbapi2
    except ImportError as error:
        raise ImportError(
            "Encryption needs the package sqlcipher3: pip install 'fastntk_sk[encryption]'."
        ) from error
    return dbapi2


def _quoted(key: bytes | str) -> str:
    """Return a key as SQLCipher reads it: a raw key in hexadecimal digits, or a passphrase."""
    if isinstance(key, bytes):
        return f"\"x'{key.hex()}'\""
    return "'" + key.replace("'", "''") + "'"


def _check_file(path: Path, key: bytes | str | None, write: bool, make: bool) -> tuple[int, int]:
    """Make the file of a first save, or check that one looks as the key says; return where it lies."""
    if path.is_dir():
        raise StateFormatError(
            f"Expected the path of a file, such as 'model.fastntk', got the folder {str(path)!r}. A "
            "folder of a public adapter is read by FastNTKClassifier.from_pretrained."
        )
    if make and not path.exists():
        try:
            files.make_folder(path.parent)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StateWriteError(
                f"{str(path)!r} cannot be made: {error}. Choose another place."
            ) from error
    try:
        found = path.stat()
        place = found.st_dev, found.st_ino
        if not stat.S_ISREG(found.st_mode):
            raise StateFormatError(f"Expected {str(path)!r} to be a file. Choose another path.")
        require(2 * found.st_size, f"Reading {path.name} takes", "Load it on a larger machine.")
        if place in _OPEN:  # by closing a file, a process loses the locks of all its connections
            is_encrypted = _OPEN[place][0]
        else:
            with path.open("rb") as file:
                header = file.read(len(_HEADER))
            if not header.strip(b"\0"):  # a first save, which SQLite will undo if it was interrupted
                return place
            is_encrypted = header != _HEADER
    except FileNotFoundError:
        raise StateFormatError(
            f"There is no file {str(path)!r}. Pass the path that was given to save()."
        ) from None
    except OSError as error:
        raise StateFormatError(f"{str(path)!r} cannot be read: {error}.") from error
    if is_encrypted and key is None:
        raise DecryptionError(
            f"{path.name} is encrypted, or no state of this library. Pass the key of save(): key=..."
        )
    if key is not None and not is_encrypted:
        raise DecryptionError(
            f"{path.name} is not encrypted, and a key was given: anybody may have written it. Leave the "
            "key out if you trust it, or save to another file to encrypt it."
        )
    return place


def _check_schema(connection: Any, path: Path, write: bool) -> None:
    """Check that the tables are this library's, or make them in a new file."""
    found = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")]
    ((application,),) = connection.execute("PRAGMA application_id")
    ((schema,),) = connection.execute("PRAGMA user_version")
    if not found and not application:
        if not write:
            raise StateFormatError(
                f"{path.name} is empty: its first save was interrupted. Save once more."
            )
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        for table in TABLES:
            connection.execute(_statement(table))
        return
    if application != APPLICATION_ID:
        raise StateFormatError(f"{path.name} is a database of something else. Choose another file.")
    if schema > SCHEMA:
        raise StateFormatError(
            f"{path.name} was written by a later version (schema {schema}; this one reads {SCHEMA}). "
            "Upgrade fastntk_sk."
        )
    if schema != SCHEMA or found != [*map(_statement, TABLES)]:
        raise StateFormatError(
            f"{path.name} has other tables than this library makes. Restore a backup."
        )


def _statement(table: str) -> str:
    return f"CREATE TABLE {table} (row INTEGER PRIMARY KEY, checksum BLOB, {', '.join(TABLES[table])})"


def _names(table: str) -> list[str]:
    return [column.split()[0] for column in TABLES[table]]


def row_checksum(table: str, row: int, values: Sequence[Any]) -> bytes:
    """Return what the column "checksum" of a row holds."""
    content = msgspec.msgpack.encode((table, row, *values))
    return hashlib.blake2b(content, digest_size=16).digest()


def _named(error: Exception, path: Path, key: bytes | str | None) -> Exception:
    """Return an error of SQLite as one that says what to do."""
    text = str(error)
    if "locked" in text:
        return StateLockedError(
            f"Another process or thread is writing to {path.name}. Nothing was changed; call again."
        )
    if "not a database" in text and key is not None:
        return DecryptionError(
            f"{path.name} is encrypted with another key, or damaged. Pass the key of save()."
        )
    if any(word in text for word in ("full", "readonly", "I/O", "unable to open", "or rekey")):
        return StateWriteError(
            f"{str(path)!r} cannot be written ({text}); it is as it was. Make room, or give access to "
            "its folder, and call again."
        )
    return StateFormatError(f"{path.name} is damaged: {text}. Restore a backup.")
