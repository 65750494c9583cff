"""Pictures in folders, CSV files and lists of paths, as the command line and the demo take them."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..exceptions import warn

DATA = "folder with a subfolder for each class, or a CSV file with columns path, label and perhaps id"
# of the formats that `decoding` reads
SUFFIXES = (
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """Paths of pictures with their classes and ids, as far as the source names them.

    Parameters
    ----------
    paths : list of str
        Of the pictures: what `fit` takes as X.

    labels : list of str, default=None
        Their classes: what `fit` takes as y.

    ids : list of str or None, default=None
        What `fit` takes as `sample_ids`; None for a picture without one.

    Examples
    --------
    >>> from fastntk_sk import Pictures
    >>> Pictures(["cats/1.png", "dogs/1.png"], ["cats", "dogs"]).labels
    ['cats', 'dogs']
    """

    paths: list[str]
    labels: list[str] | None = None
    ids: list[str | None] | None = None


def read_pictures(source: str | os.PathLike[str]) -> Pictures:
    """Return the paths, classes and ids of pictures in a folder or in a list.

    Parameters
    ----------
    source : str or path
        A folder, of which the first level of subfolders gives the classes; a CSV file with the columns
        path, label and perhaps id; a text file with one path a line; or one picture. Paths in a file are
        relative to it. Links are followed, and hidden files and folders are left out.

    Returns
    -------
    pictures : Pictures
        `labels` and `ids` are None where the source does not name them.

    Raises
    ------
    ValueError
        If there are no pictures, or a list is not in UTF-8.

    Warns
    -----
    UserWarning
        Counts the files that are left out for their endings.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from fastntk_sk import read_pictures
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("cats", "dogs"):
    ...     (folder / name).mkdir()
    ...     Image.new("RGB", (32, 32)).save(folder / name / "1.png")
    >>> read_pictures(folder).labels
    ['cats', 'dogs']
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(_pictures_in(source))
        nested = all(path.parent != source for path in found)
        labels = [path.relative_to(source).parts[0] for path in found] if nested else None
        pictures = Pictures([str(path) for path in found], labels)
    elif source.suffix.lower() in SUFFIXES:
        pictures = Pictures([str(source)])
    else:
        try:
            text = source.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Expected {source} to be a picture ({', '.join(SUFFIXES)}) or a list in UTF-8, got "
                "other bytes. Rename the picture, or save the list as UTF-8."
            ) from error
        if source.suffix.lower() == ".csv":
            try:
                pictures = _listed(source, text)
            except csv.Error as error:  # such as a quote that is never closed
                raise ValueError(f"Expected a CSV file in {source}, got another: {error}.") from error
        else:
            lines = [line.strip() for line in text.splitlines()]
            pictures = Pictures([str(source.parent / line) for line in lines if line])
    if not pictures.paths:
        raise ValueError(f"Expected pictures in {source}, got none. Give a {DATA}.")
    return pictures


def read_labelled(source: Path) -> tuple[Pictures, list[str]]:
    """Return pictures and their classes; raise ValueError if the source does not name the classes.

    A warning names the subfolders that hold no picture, and are no classes.
    """
    pictures = read_pictures(source)
    if pictures.labels is None:
        raise ValueError(f"Expected a class for each picture of {source}, got none. Give a {DATA}.")
    if source.is_dir():
        folders = {each.name for each in source.iterdir() if each.is_dir() and each.name[0] != "."}
        if empty := sorted(folders - set(pictures.labels)):
            warn(f"No pictures are in the folders {empty} of {source}: they are no classes.")
    return pictures, pictures.labels


def _pictures_in(folder: Path) -> Iterator[Path]:
    seen, left_out = set(), Counter[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                yield Path(place) / name
            else:
                left_out[suffix or "without one"] += 1
    if left_out:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))
        warn(f"Left out of {folder}, as these are no pictures by their endings: {counts}.")


def _listed(source: Path, text: str) -> Pictures:
    reader = csv.DictReader(io.StringIO(text))
    fields = reader.fieldnames or []
    if "path" not in fields:
        raise ValueError(
            f"Expected columns path, label and perhaps id in {source}, got {list(fields)}. Name the "
            "columns in the first line."
        )
    rows = []
    for row in reader:
        needed = [row[name] for name in ("path", "label") if name in fields]
        if None in row or None in row.values() or not all(cell.strip() for cell in needed):
            raise ValueError(
                f"Expected {len(fields)} cells, path and label filled, in line {reader.line_num} of "
                f"{source}. Quote cells that hold commas."
            )
        rows.append(row)
    return Pictures(
        [str(source.parent / row["path"]) for row in rows],
        [row["label"] for row in rows] if "label" in fields else None,
        [row["id"] or None for row in rows] if "id" in fields else None,
    )
