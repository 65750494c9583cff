"""The command line: learn a folder of pictures, forget files, predict, report, publish."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .backbones.recipes import find_recipe, list_recipes, load_recipe
from .classifier import FastNTKClassifier
from .exceptions import FastNTKError
from .publishing import files
from .publishing.exactness import exactness_text
from .store import persistence
from .sums import memory
from .sums.statistics import Statistics

# as torchvision's ImageFolder reads them
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_FAILURES = (FastNTKError, ValueError, OSError, ImportError, Image.DecompressionBombError)
_CLASSES = 10  # of the statistics in the zoo's table
_DATA = "folder with a subfolder for each class, or a CSV file with columns path, label and perhaps id"


@dataclass(frozen=True)
class Answer:
    """What a command found: for programs, and for people."""

    data: dict[str, Any]
    text: str
    code: int = 0


@dataclass(frozen=True)
class Pictures:
    """Files, and what is known of them; labels of a folder are the names of its subfolders."""

    paths: list[str]
    labels: list[str] | None = None
    ids: list[str | None] | None = None


def read_pictures(source: Path) -> Pictures:
    """Return the pictures that a folder, a CSV file or a list of paths names.

    Parameters
    ----------
    source : Path
        A folder of class folders (links are followed, hidden folders are not read), a folder of
        pictures, a picture, a CSV file with a header, or a text file with one path a line. Paths in a
        file are relative to it.

    Raises
    ------
    ValueError
        If there is no picture, or a line does not name one.
    """
    if source.is_dir():
        found = sorted(_pictures_in(source))
        nested = [path.parent != source for path in found]
        labels = [path.relative_to(source).parts[0] for path in found] if all(nested) else None
        pictures = Pictures([str(path) for path in found], labels)
    elif source.suffix.lower() in _SUFFIXES:
        pictures = Pictures([str(source)])
    else:
        try:
            text = source.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Expected {source} to be a picture ({', '.join(_SUFFIXES)}) or a list in UTF-8, got "
                "other bytes. Rename the picture, or save the list as UTF-8."
            ) from error
        if source.suffix.lower() == ".csv":
            pictures = _listed(source, text)
        else:
            lines = [line.strip() for line in text.splitlines()]
            pictures = Pictures([str(source.parent / line) for line in lines if line])
    if not pictures.paths:
        raise ValueError(f"Expected pictures in {source}, got none. Give a {_DATA}.")
    return pictures


def _pictures_in(folder: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (
                Path(place) / name
                for name in names
                if Path(name).suffix.lower() in _SUFFIXES and not name.startswith(".")
            )
        seen.add(real)


def _listed(source: Path, text: str) -> Pictures:
    """Return the pictures of a CSV file."""
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


def _labelled(source: Path) -> tuple[Pictures, list[str]]:
    """Return pictures whose classes are known, and the classes."""
    pictures = read_pictures(source)
    if pictures.labels is None:
        raise ValueError(f"Expected a class for each picture of {source}, got none. Give a {_DATA}.")
    return pictures, pictures.labels


def _zoo(args: argparse.Namespace) -> Answer:
    rows: list[dict[str, Any]] = []
    for recipe in map(load_recipe, list_recipes(args.pattern)):
        # the features themselves are in both halves of the sketch
        width = min((recipe.n_pooled or 0) + (recipe.n_features or 0), memory.AUTO_COMPONENTS)
        rows.append(
            {
                "name": recipe.name,
                "source": recipe.source,
                "revision": recipe.revision,
                "license": recipe.license,
                "input_size": recipe.input_size,
                "n_weights": recipe.n_weights,
                "n_features": recipe.n_features,
                "n_pooled": recipe.n_pooled,
                "trainable": dict(recipe.trainable),
                "defaults": dict(recipe.defaults),
                "statistics_bytes": Statistics.n_bytes(width, 0, _CLASSES) if width else None,
                "results": dict(recipe.results),
            }
        )
    table = [["name", "weights", "pixels", "ladder pools", "statistics", "licence", "accuracy"]]
    for row in rows:
        accuracy = row["results"].get("accuracy")
        table.append(
            [
                row["name"],
                f"{row['n_weights'] / 1e6:.1f} M" if row["n_weights"] else "-",
                str(row["input_size"] or "-"),
                f"{row['n_pooled']:,}" if row["n_pooled"] else "-",
                f"{row['statistics_bytes'] / 2**20:,.0f} MiB" if row["statistics_bytes"] else "-",
                row["license"],
                "not measured" if accuracy is None else f"{accuracy:.1%} {row['results']['dataset']}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return Answer({"recipes": rows}, "\n".join(lines))


def _fit(args: argparse.Namespace) -> Answer:
    key = _key(args)
    if (args.out / persistence.MANIFEST).exists() and not args.overwrite:
        raise ValueError(
            f"Expected --out to be a new folder, got {str(args.out)!r}, which holds a state: its "
            "receipts would be lost, and what it has forgotten learned again. Choose another folder, or "
            "pass --overwrite."
        )
    persistence.check_place(args.out)
    persistence.check_key(key)
    pictures, labels = _labelled(args.data)
    recipe = find_recipe(args.backbone)
    chosen = {} if recipe is None else dict(recipe.defaults)
    for name in ("trainable", "anchor", "kernel", "alpha", "n_components", "image_size", "random_state"):
        if getattr(args, name) is not None:
            chosen[name] = getattr(args, name)
    clf = FastNTKClassifier(
        args.backbone,
        **chosen,
        pretrained=not args.random_weights,
        num_workers=args.num_workers,
        verbose=not args.quiet,
    )
    clf.fit(pictures.paths, labels, sample_ids=pictures.ids, checkpoint_dir=args.checkpoint_dir)
    clf.set_params(verbose=0).save(args.out, key=key)
    data = {"out": str(args.out), "n_learned": clf.n_samples_learned_, "classes": clf.classes_.tolist()}
    return Answer(
        data,
        f"Learned {clf.n_samples_learned_:,} pictures of {len(clf.classes_)} classes. The state is in "
        f"{args.out}: it is private.",
    )


def _unlearn(args: argparse.Namespace) -> Answer:
    listed = [read_pictures(source) for source in args.forget]
    paths = [path for pictures in listed for path in pictures.paths]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise ValueError(
            f"Expected files that are still there, got {missing[:5]}: deletion goes by content. Take "
            "them from a backup, forget, and delete them afterwards."
        )
    key = _key(args)
    persistence.check_place(args.dir)
    persistence.check_key(key)
    clf = FastNTKClassifier.load(args.dir, key=key)
    # names of folders that are no classes are just folders; a file says what it means
    given = [
        _as_classes(clf, pictures.labels, source.is_dir())
        for source, pictures in zip(args.forget, listed, strict=True)
    ]
    labels = [label for part in given for label in part or ()] if None not in given else None
    ids = [one for pictures in listed for one in pictures.ids or [None] * len(pictures.paths)]
    request: dict[str, Any] = {
        "sample_ids": ids if any(one is not None for one in ids) else None,
        "copies": "all" if args.all_copies else "one",
    }
    if args.dry_run:
        report = clf.can_unlearn(paths, labels, **request)
        verdict = "can be forgotten" if report["possible"] else f"cannot: {report['reason']}"
        text = f"{report['n_rows']:,} learned rows {verdict} (about {report['seconds']:.1f} s)."
        return Answer(report, text, code=int(not report["possible"]))
    verbose = clf.verbose
    clf.set_params(verbose=not args.quiet).unlearn(paths, labels, **request)
    clf.set_params(verbose=verbose).save(args.dir, key=key)
    receipt = clf.receipts_[-1]
    copies = [path for path in paths if clf.can_unlearn([path])["possible"]]
    text = (
        f"Forgot {receipt['n_rows']:,} rows in {receipt['seconds']:.1f} s: {_exactness(clf, receipt)}. "
        f"{clf.n_samples_learned_:,} rows are left."
    )
    if copies:
        text += (
            f" Copies of {len(copies):,} of the pictures are still learned: --all-copies forgets them."
        )
    under_ids = receipt.get("n_rows_left_under_sample_ids", 0)
    if under_ids:
        text += f" {under_ids:,} other rows are left under the ids of the request."
    text += " What was published before still remembers: fastntk push --purge-history."
    data = {"receipt": receipt, "n_learned": clf.n_samples_learned_, "copies_left": copies}
    return Answer(data, text)


def _exactness(clf: FastNTKClassifier, receipt: dict[str, Any]) -> str:
    return exactness_text(receipt["exactness"], ladder_alone=clf._adapter.is_ladder_alone)


def _predict(args: argparse.Namespace) -> Answer:
    clf = _any(args)
    paths = [path for source in args.images for path in read_pictures(source).paths]
    probabilities = clf.predict_proba(paths)
    found = [
        {"path": path, "class": clf.classes_.tolist()[row.argmax()], "confidence": float(row.max())}
        for path, row in zip(paths, probabilities, strict=True)
    ]
    lines = [f"{row['path']}\t{row['class']}\t{row['confidence']:.3f}" for row in found]
    return Answer({"predictions": found}, "\n".join(lines))


def _report(args: argparse.Namespace) -> Answer:
    clf = _any(args)
    before = None if args.before is None else _any(args, args.before)
    inside = args.html is not None and any(
        (args.html.parent / name).exists() for name in (persistence.MANIFEST, persistence.CONFIG)
    )
    if inside:
        raise ValueError(
            f"Expected --html to lie outside of a model's folder, got {str(args.html)!r}: a state is "
            "not saved beside other files. Choose another place."
        )
    receipts = clf.receipts_
    data: dict[str, Any] = {
        "n_learned": clf.n_samples_learned_,
        "n_forgotten": clf.n_samples_forgotten_,
        "receipts": receipts,
    }
    lines = [f"{clf.n_samples_learned_:,} rows learned, {clf.n_samples_forgotten_:,} forgotten."]
    if clf.n_samples_forgotten_ and not receipts:
        lines.append("The receipts are with the private state.")
    lines += [f"{r['time']}  {r['n_rows']:,} rows  {_exactness(clf, r)}" for r in receipts]
    paths, labels = None, None
    if args.data is not None:
        pictures, named = _labelled(args.data)
        paths, labels = pictures.paths, _as_classes(clf, named, False)
        data["accuracy"] = clf.score(paths, labels)
        lines.append(f"accuracy {data['accuracy']:.1%} on {len(paths):,} pictures")
    if args.html is not None:
        from .evaluation.page import report_page

        page = report_page(clf, X=paths, y=labels, before=before)
        args.html.parent.mkdir(parents=True, exist_ok=True)
        files.replace(args.html.parent, args.html.name, page.encode())
        data["html"] = str(args.html)
        lines.append(f"page: {args.html}")
    return Answer(data, "\n".join(lines))


def _push(args: argparse.Namespace) -> Answer:
    clf = _any(args)
    url = clf.push_to_hub(
        args.repo,
        private=args.private or None,
        revision=args.revision,
        license=args.license,
        purge_history=args.purge_history,
    )
    return Answer({"url": url}, f"Published the adapter, not the private state: {url}")


def _demo(args: argparse.Namespace) -> Answer:
    try:
        from .demo.app import build
    except ImportError as error:
        raise ValueError(f'Expected gradio, got {error}. pip install "fastntk_sk[demo]".') from error
    build(local=True).launch(server_name="127.0.0.1", server_port=args.port, quiet=args.json)
    return Answer({}, "The app has ended.")


def _subset(text: str) -> str | list[str]:
    return text.split(",") if "," in text else text


def _alpha(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _key(args: argparse.Namespace) -> str | None:
    return None if args.key_file is None else args.key_file.read_text(encoding="ascii").strip()


def _any(args: argparse.Namespace, path: str | None = None) -> FastNTKClassifier:
    """Load a private state, an adapter, or a repository of the Hub."""
    place = args.dir if path is None else path
    if (Path(place) / persistence.MANIFEST).exists():
        return FastNTKClassifier.load(place, key=_key(args))
    return FastNTKClassifier.from_pretrained(place)


def _as_classes(clf: FastNTKClassifier, labels: list[str] | None, lenient: bool) -> list | None:
    """Return the classes that labels of files stand for; None where a lenient reading finds others."""
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastntk", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., Answer], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print one JSON object")
        made.add_argument("--quiet", action="store_true", help="no progress bars")
        if name not in ("zoo", "demo"):
            made.add_argument("--key-file", type=Path, help="file with the key of an encrypted state")
        return made

    zoo = command("zoo", _zoo, "List the recipes of backbones.")
    zoo.add_argument("pattern", nargs="?", default="*", help="such as 'vit*'")

    fit = command("fit", _fit, "Learn pictures and save the state.")
    fit.add_argument("data", type=Path, help=_DATA)
    fit.add_argument("--out", type=Path, required=True, help="folder of the state")
    fit.add_argument("--overwrite", action="store_true", help="replace a state, receipts and all")
    fit.add_argument("--backbone", default="tf_efficientnet_lite0", help="a recipe or a timm name")
    fit.add_argument("--trainable", type=_subset, help="one subset, or several with commas between them")
    fit.add_argument("--anchor", choices=("pretrained", "finetuned"))
    fit.add_argument("--kernel", choices=("full", "pseudo"))
    fit.add_argument("--alpha", type=_alpha, help='a number, or "auto"')
    fit.add_argument("--n-components", type=int)
    fit.add_argument("--image-size", type=int)
    fit.add_argument("--random-state", type=int, default=0)
    fit.add_argument("--random-weights", action="store_true", help="no pretrained weights")
    fit.add_argument("--num-workers", type=int, default=0, help="processes that read ahead")
    fit.add_argument("--checkpoint-dir", type=Path, help="go on here after an interruption")

    unlearn = command("unlearn", _unlearn, "Forget pictures and save the state again.")
    unlearn.add_argument("dir", type=Path, help="folder of the state")
    unlearn.add_argument(
        "--forget", type=Path, nargs="+", required=True, help="pictures, or lists of them"
    )
    unlearn.add_argument("--dry-run", action="store_true", help="tell whether it is possible")
    unlearn.add_argument("--all-copies", action="store_true", help="every copy that was learned")

    predict = command("predict", _predict, "Tell the classes of pictures.")
    predict.add_argument("dir", help="a state, an adapter or a repository of the Hub")
    predict.add_argument("images", type=Path, nargs="+", help="pictures, folders or lists")

    report = command("report", _report, "Tell what a model rests on.")
    report.add_argument("dir", help="a state, an adapter or a repository of the Hub")
    report.add_argument("--data", type=Path, help=f"test pictures: a {_DATA}")
    report.add_argument("--before", help="the model before its deletions")
    report.add_argument("--html", type=Path, help="write one page with tables and pictures")

    push = command("push", _push, "Publish the adapter on the Hub.")
    push.add_argument("dir", help="a state or an adapter")
    push.add_argument("repo", help="ORG/NAME")
    push.add_argument("--private", action="store_true", help="if it is a new repository")
    push.add_argument("--revision", help="a branch")
    push.add_argument("--license")
    push.add_argument("--purge-history", action="store_true", help="delete earlier versions for good")

    demo = command("demo", _demo, "Open an app in the browser: learn pictures, pick some, forget.")
    demo.add_argument("--port", type=int, default=7860)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, default=None
        Arguments; None takes those of the process.

    Returns
    -------
    code : int
        0, or 1 if the command failed or a dry run finds that it would; what is wrong with the arguments
        themselves exits with 2.

    Examples
    --------
    >>> from fastntk_sk.cli import main
    >>> main(["zoo", "resnet18"])  # doctest: +ELLIPSIS
    name      weights ...
    resnet18  11.2 M ...
    0
    """
    args = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"fastntk: {message}", file=sys.stderr)
        try:
            answer = args.run(args)
        except _FAILURES as error:
            if args.json:
                print(json.dumps({"error": type(error).__name__, "message": str(error)}))
            print(f"fastntk: {error}", file=sys.stderr)
            return 1
    print(json.dumps(answer.data) if args.json else answer.text)
    return answer.code
