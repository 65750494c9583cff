"""States as commands open them, and what commands say about them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..exceptions import SampleError

if TYPE_CHECKING:
    from ..classifier import FastNTKClassifier

_KEY_BYTES = 32
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def key_in(file: Path | None) -> str | bytes | None:
    """Return the key in a file, if there is one."""
    return None if file is None else read_key(file)


def read_key(file: Path) -> str | bytes:
    """Return the passphrase in a file, without the space around it, or a raw key."""
    content = file.read_bytes()
    try:
        found = content.decode().strip()
    except UnicodeDecodeError as error:
        if len(content) == _KEY_BYTES:
            return content
        raise ValueError(
            f"Expected a passphrase as text in UTF-8, or a key of {_KEY_BYTES} bytes, in {file}, got "
            f"{len(content):,} other bytes. Give the file of the key that `save` was given."
        ) from error
    if not found:
        raise ValueError(f"Expected a passphrase in {file}, got an empty file.")
    return found


def load_state(path: Path, key_file: Path | None, quiet: bool) -> FastNTKClassifier:
    """Load a private state."""
    from ..classifier import FastNTKClassifier

    clf = FastNTKClassifier.load(path, key=key_in(key_file))
    return clf.set_params(verbose=int(not quiet))


def load_model(place: str, key_file: Path | None, quiet: bool) -> FastNTKClassifier:
    """Load a private state, an adapter, or a repository of the Hub."""
    from ..classifier import FastNTKClassifier

    if not Path(place).exists() and not _REPOSITORY.fullmatch(place):
        raise ValueError(
            f"Expected a state, a folder with an adapter or a repository ORG/NAME, got {place!r}, which "
            "does not exist. Check the path."
        )
    if Path(place).is_file():
        return load_state(Path(place), key_file, quiet)
    return FastNTKClassifier.from_pretrained(place).set_params(verbose=int(not quiet))


@contextmanager
def changed(
    path: Path, key_file: Path | None, quiet: bool, items: Sequence[str]
) -> Iterator[FastNTKClassifier]:
    """Open a state for one change, show progress, and name files and ids in errors."""
    from ..classifier import FastNTKClassifier

    with FastNTKClassifier.open(path, key=key_in(key_file)) as clf:
        verbose = clf.verbose
        clf.set_params(verbose=int(not quiet))
        try:
            yield clf
        except SampleError as error:
            raise type(error)(with_names(str(error), items), error.indices) from error
        clf.set_params(verbose=verbose)


def with_names(message: str, items: Sequence[str]) -> str:
    """Return a message about rows, or ids, of a request with the names of their files, or the ids."""
    what = {"Rows": "Files", "ids at": "ids"}

    def named(found: re.Match[str]) -> str:
        rows = [int(i) for i in found[2].split(", ")]
        if max(rows) >= len(items):  # it stands in a name
            return found[0]
        return f"{what[found[1]]} [{', '.join(items[row] for row in rows)}"

    return re.sub(r"\b(Rows|ids at) \[(\d+(?:, \d+)*)", named, message)


def as_classes(clf: FastNTKClassifier, labels: list[str] | None, lenient: bool) -> list | None:
    """Return the classes named by labels; None if `lenient` and one of them is unknown."""
    if labels is None:
        return None
    classes = {str(label): label for label in clf.classes_.tolist()}
    unknown = sorted(set(labels) - set(classes))
    if not unknown:
        return [classes[label] for label in labels]
    if lenient:
        return None
    raise ValueError(
        f"Expected labels among {sorted(classes)}, got {unknown[:5]}. Use the names that were learned."
    )
