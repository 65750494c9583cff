"""Commands that find and forget rows, and keep a state in order: find, unlearn, rebuild, rekey."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..backbones.folders import Pictures, read_pictures
from ..escaping import visible
from ..exceptions import AmbiguousSampleError
from ..wording import counted
from .command import FILE, Answer, Output, command, flag, here, key_file_option, names_option
from .states import as_classes, changed, load_state, read_key, with_names

if TYPE_CHECKING:
    from ..classifier import FastNTKClassifier


@command(
    "find", "fastntk find clinic.fastntk anna.jpg", "fastntk find clinic.fastntk new --threshold 0.95"
)
@click.argument("state", type=FILE)
@click.argument("pictures", type=FILE, nargs=-1, required=True)
@click.option(
    "--number", type=click.IntRange(min=1), default=5, help="Most learned pictures for each picture."
)
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    default=0.9,
    help="Least similarity, a cosine; the very content has 1.",
)
@key_file_option
def find(
    output: Output,
    state: Path,
    pictures: tuple[Path, ...],
    number: int,
    threshold: float,
    key_file: Path | None,
) -> Answer:
    """Find the learned pictures that are like some pictures.

    STATE is one that was learned with --keep features. PICTURES are files, folders, or lists of paths.
    Each line has a picture, the similarity of a learned one, and the id and the class of that.
    """
    clf = load_state(state, key_file, output.quiet)
    paths = [path for source in pictures for path in read_pictures(source).paths]
    found = clf.find(paths, n=number, threshold=threshold)
    rows = [{"path": path} | row for path, each in zip(paths, found, strict=True) for row in each]
    nothing = (
        f"No learned picture has a similarity of {threshold:g} or more. One that was encoded again may "
        "have less: a lower --threshold shows what comes nearest."
    )
    lines = [
        f"{visible(row['path'])}\t{row['similarity']:.3f}\t{visible(row['sample_id'])}"
        f"\t{visible(row['label'])}"
        for row in rows
    ]
    return Answer({"found": rows}, "\n".join(lines) or nothing)


@command(
    "unlearn",
    "fastntk unlearn clinic.fastntk pictures/anna/0042.png --dry-run",
    "fastntk unlearn clinic.fastntk request.txt",
    "fastntk unlearn clinic.fastntk --id anna --id ben",
)
@click.argument("state", type=FILE)
@click.argument("pictures", type=FILE, nargs=-1)
@names_option
@flag("--dry-run", "Only report what would be forgotten; the exit code is 1 if it is not possible.")
@flag("--all-copies", "Forget every learned copy of each picture, instead of one.")
@flag("--skip-unknown", "Forget the rest, where some of it was not learned, instead of nothing.")
@click.option(
    "--request-id", show_default="none", help="Opaque name of the request, which the receipt shows."
)
@key_file_option
def unlearn(
    output: Output,
    state: Path,
    pictures: tuple[Path, ...],
    names: tuple[str, ...],
    dry_run: bool,
    all_copies: bool,
    skip_unknown: bool,
    request_id: str | None,
    key_file: Path | None,
) -> Answer:
    """Forget PICTURES, or ids, and save the state again.

    PICTURES are files, folders, text files with one path a line, or CSV files with the columns path and
    perhaps label and id. They are matched by their content: forget first, delete the files afterwards.
    """
    asked = _Asked([(source, read_pictures(source)) for source in pictures], names)
    asked.check()
    options = {
        "copies": "all" if all_copies else "one",
        "on_unknown": "skip" if skip_unknown else "raise",
    }
    if dry_run:
        clf = load_state(state, key_file, output.quiet)
        return _tried(clf.can_unlearn(**asked.rows(clf), **options), asked)
    with changed(state, key_file, output.quiet, asked.items) as clf:
        clf.unlearn(**asked.rows(clf), **options, request_id=request_id or ())
    return _forgotten(clf, asked.paths)


class _Asked(NamedTuple):
    """What is to be forgotten: pictures of several sources, or sample ids."""

    sources: list[tuple[Path, Pictures]]
    names: tuple[str, ...]

    @property
    def paths(self) -> list[str]:
        return [path for _, pictures in self.sources for path in pictures.paths]

    @property
    def items(self) -> Sequence[str]:
        return self.paths or self.names

    def check(self) -> None:
        """Raise ValueError where it cannot be looked for."""
        missing = [path for path in self.paths if not Path(path).is_file()]
        if missing:
            raise ValueError(
                f"Expected files that exist, got {missing[:5]}: rows are matched by their content. "
                "Restore them from a backup, forget them, and delete them afterwards."
            )
        if bool(self.paths) == bool(self.names):
            raise ValueError("Expected either pictures or --id, got both or neither.")

    def rows(self, clf: FastNTKClassifier) -> dict[str, Any]:
        """Return it as arguments of `unlearn`."""
        if self.names:
            return {"sample_ids": _meant(clf, self.names)}
        # a folder of a request need not be named after a class; a file states its labels
        labels = [as_classes(clf, pictures.labels, source.is_dir()) for source, pictures in self.sources]
        ids = [one for _, each in self.sources for one in each.ids or [None] * len(each.paths)]
        return {
            "X_forget": self.paths,
            "y_forget": [one for part in labels for one in part or ()] if None not in labels else None,
            "sample_ids": _meant(clf, ids) if any(one is not None for one in ids) else None,
        }


def _meant(clf: FastNTKClassifier, names: Sequence[str | None]) -> list[str | int | None]:
    """Return the sample ids that are meant by texts: 7 may have been learned as a number."""
    given = [name for name in names if name is not None]
    meant: dict[str | None, str | int | None] = {None: None}
    for name, known in zip(given, clf._held.ledger.known_ids(given), strict=True):
        if len(known) > 1:
            raise AmbiguousSampleError(
                f"Both the number {name} and the text {name!r} are sample ids of learned rows. Forget "
                "it in Python, where they differ."
            )
        meant[name] = known[0] if known else name
    return [meant[name] for name in names]


def _tried(report: dict[str, Any], asked: _Asked) -> Answer:
    report["files"] = [asked.items[i] for i in report.pop("indices")]
    told = zip(asked.items, report["rows"], strict=False)  # none where a picture cannot be read
    report["rows"] = [{"item": item} | row for item, row in told]
    report["reason"] = here(with_names(report["reason"], asked.items))
    if report["possible"]:
        text = (
            f"{counted(report['n_rows'], 'learned row')} can be forgotten, in about "
            f"{report['seconds']:.1f} s."
        )
    else:
        text = f"This cannot be forgotten: {report['reason']}"
    return Answer(report, text, code=int(not report["possible"]))


def _forgotten(clf: FastNTKClassifier, paths: list[str]) -> Answer:
    receipt = clf.receipts_[-1]
    rows = clf.can_unlearn(paths, copies="all")["rows"] if paths else []
    copies = [path for path, row in zip(paths, rows, strict=True) if row["result"] == "found"]
    exactness = clf._adapter.exactness_text(receipt["exactness"])
    text = (
        f"Forgot {counted(receipt['n_rows'], 'row')} in {receipt['seconds']:.1f} s: {exactness}. "
        f"Learned rows left: {clf.n_samples_learned_:,}."
    )
    if copies:
        text += (
            f" Copies of {counted(len(copies), 'picture')} are still learned: --all-copies forgets them "
            "too."
        )
    under_ids = receipt.get("n_rows_left_under_sample_ids", 0)
    if under_ids:
        text += f" Other rows left under the ids of the request: {under_ids:,}."
    text += " Versions published before still hold them: fastntk push --purge-history deletes those."
    data = {"receipt": receipt, "n_learned": clf.n_samples_learned_, "copies_left": copies}
    return Answer(data, text)


@command(
    "rebuild",
    "fastntk rebuild clinic.fastntk left.txt",
    "fastntk rebuild clinic.fastntk",
)
@click.argument("state", type=FILE)
@click.argument("data", type=FILE, required=False)
@key_file_option
def rebuild(output: Output, state: Path, data: Path | None, key_file: Path | None) -> Answer:
    """Sum the pictures that are left anew, which ends numerical drift.

    DATA is a folder or a list of exactly the pictures that are left. A state that was learned with
    --keep features needs none.
    """
    pictures = Pictures([]) if data is None else read_pictures(data)
    with changed(state, key_file, output.quiet, pictures.paths) as clf:
        if data is None:
            clf.rebuild()
        else:
            clf.rebuild(pictures.paths, as_classes(clf, pictures.labels, data.is_dir()))
    n_rows = counted(clf.n_samples_learned_, "row")
    text = f"Rebuilt the sums of {n_rows}. Ledger and receipts are unchanged."
    return Answer({"n_learned": clf.n_samples_learned_}, text)


@command("rekey", "fastntk rekey clinic.fastntk --key-file old.txt --new-key-file new.txt")
@click.argument("state", type=FILE)
@click.option("--key-file", type=FILE, required=True, help="File with the passphrase until now.")
@click.option("--new-key-file", type=FILE, required=True, help="File with the new passphrase.")
def rekey(output: Output, state: Path, key_file: Path, new_key_file: Path) -> Answer:
    """Encrypt a state that is encrypted with another key."""
    from ..classifier import FastNTKClassifier

    FastNTKClassifier.rekey(state, key=read_key(key_file), new_key=read_key(new_key_file))
    return Answer({"state": str(state)}, f"{state} is encrypted with the new key.")
