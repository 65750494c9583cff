"""The command line: learn a folder of pictures, forget files, predict, report, publish."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .backbones.folders import DATA, read_labelled, read_pictures
from .backbones.recipes import Recipe, list_recipes, load_recipe
from .classifier import FastNTKClassifier
from .escaping import visible
from .exceptions import FastNTKError, SampleError
from .publishing import files
from .publishing.exactness import exactness_text
from .store import persistence
from .sums import memory
from .sums.statistics import Statistics

_FAILURES = (FastNTKError, ValueError, OSError, ImportError, Image.DecompressionBombError)
_CLASSES = 10  # assumed for the size of the statistics in the zoo's table
_FIT_PARAMETERS = (
    "trainable",
    "anchor",
    "kernel",
    "alpha",
    "n_components",
    "image_size",
    "random_state",
    "num_workers",
)
# what messages advise in Python, and what does the same here
_COMMANDS = {
    "rebuild(X, y)": "`fastntk rebuild`",
    "y_forget": "the column label",
    "copies='all'": "--all-copies",
    "sample_ids": "a column id",
}


@dataclass(frozen=True)
class Answer:
    """The result of a command, as data for --json and as text."""

    data: dict[str, Any]
    text: str
    code: int = 0


def _zoo(args: argparse.Namespace) -> Answer:
    rows = [_recipe_row(load_recipe(name)) for name in list_recipes(args.pattern)]
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
                row["license"] or "-",
                "not measured" if accuracy is None else f"{accuracy:.1%} {row['results']['dataset']}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return Answer({"recipes": rows}, "\n".join(lines))


def _recipe_row(recipe: Recipe) -> dict[str, Any]:
    # the features themselves are in both halves of the sketch
    width = min((recipe.n_pooled or 0) + (recipe.n_features or 0), memory.AUTO_COMPONENTS)
    return {
        "name": recipe.name,
        "source": recipe.source,
        "license": recipe.license,
        "input_size": recipe.input_size,
        "n_weights": recipe.n_weights,
        "n_features": recipe.n_features,
        "n_pooled": recipe.n_pooled,
        "trainable": dict(recipe.trainable),
        "statistics_bytes": Statistics.n_bytes(width, 0, _CLASSES) if width else None,
        "results": dict(recipe.results),
    }


def _fit(args: argparse.Namespace) -> Answer:
    key = _key(args)
    if args.out.exists() and not args.overwrite:
        raise ValueError(
            f"Expected --out to be a new file, got {str(args.out)!r}, which exists. To replace a state "
            "loses its receipts, and may learn again what it has forgotten. Choose another file, or "
            "pass --overwrite."
        )
    persistence.check_place(args.out, key)
    pictures, labels = read_labelled(args.data)
    given = {name: getattr(args, name) for name in _FIT_PARAMETERS if getattr(args, name) is not None}
    clf = FastNTKClassifier(
        args.backbone, **given, pretrained=not args.random_weights, verbose=not args.quiet
    )
    clf.fit(pictures.paths, labels, sample_ids=pictures.ids)
    clf.set_params(verbose=0).save(args.out, key=key, overwrite=args.overwrite)
    data = {"out": str(args.out), "n_learned": clf.n_samples_learned_, "classes": clf.classes_.tolist()}
    return Answer(
        data,
        f"Learned {clf.n_samples_learned_:,} pictures of {len(clf.classes_)} classes. The private state "
        f"is in {args.out}.",
    )


def _unlearn(args: argparse.Namespace) -> Answer:
    listed = [read_pictures(source) for source in args.forget]
    paths = [path for pictures in listed for path in pictures.paths]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise ValueError(
            f"Expected files that exist, got {missing[:5]}: rows are matched by their content. Restore "
            "them from a backup, forget them, and delete them afterwards."
        )
    ids = [one for pictures in listed for one in pictures.ids or [None] * len(pictures.paths)]
    request: dict[str, Any] = {
        "sample_ids": ids if any(one is not None for one in ids) else None,
        "copies": "all" if args.all_copies else "one",
    }

    def labels(clf: FastNTKClassifier) -> list | None:
        # a folder of a request need not be named after a class; a file states its labels
        given = [
            _as_classes(clf, pictures.labels, source.is_dir())
            for source, pictures in zip(args.forget, listed, strict=True)
        ]
        return [label for part in given for label in part or ()] if None not in given else None

    if args.dry_run:
        clf = FastNTKClassifier.load(args.state, key=_key(args))
        report = clf.can_unlearn(paths, labels(clf), **request)
        report["files"] = [paths[i] for i in report.pop("indices")]
        report["reason"] = _here(_with_files(report["reason"], paths))
        verdict = "can be forgotten" if report["possible"] else f"cannot: {report['reason']}"
        text = f"{report['n_rows']:,} learned rows {verdict} (about {report['seconds']:.1f} s)."
        return Answer(report, text, code=int(not report["possible"]))
    with _opened(args, paths) as clf:
        clf.unlearn(paths, labels(clf), **request)
    receipt = clf.receipts_[-1]
    unknown = set(clf.can_unlearn(paths, copies="all")["indices"])
    copies = [path for i, path in enumerate(paths) if i not in unknown]
    text = (
        f"Forgot {receipt['n_rows']:,} rows in {receipt['seconds']:.1f} s: {_exactness(clf, receipt)}. "
        f"{clf.n_samples_learned_:,} rows are left."
    )
    if copies:
        text += f" Copies of {len(copies):,} pictures are still learned: --all-copies forgets them too."
    under_ids = receipt.get("n_rows_left_under_sample_ids", 0)
    if under_ids:
        text += f" {under_ids:,} other rows are left under the ids of the request."
    text += " Versions published before still hold them: fastntk push --purge-history deletes those."
    data = {"receipt": receipt, "n_learned": clf.n_samples_learned_, "copies_left": copies}
    return Answer(data, text)


def _rebuild(args: argparse.Namespace) -> Answer:
    pictures = read_pictures(args.data)
    with _opened(args, pictures.paths) as clf:
        clf.rebuild(pictures.paths, _as_classes(clf, pictures.labels, args.data.is_dir()))
    text = f"Rebuilt the sums of {clf.n_samples_learned_:,} rows. Ledger and receipts are unchanged."
    return Answer({"n_learned": clf.n_samples_learned_}, text)


@contextmanager
def _opened(args: argparse.Namespace, paths: list[str]) -> Iterator[FastNTKClassifier]:
    """Open a state for one change, show progress, and name files in errors."""
    with FastNTKClassifier.open(args.state, key=_key(args)) as clf:
        verbose = clf.verbose
        clf.set_params(verbose=not args.quiet)
        try:
            yield clf
        except SampleError as error:
            raise type(error)(_with_files(str(error), paths), error.indices) from error
        clf.set_params(verbose=verbose)


def _exactness(clf: FastNTKClassifier, receipt: dict[str, Any]) -> str:
    return exactness_text(receipt["exactness"], ladder_alone=clf._adapter.is_ladder_alone)


def _with_files(message: str, paths: list[str]) -> str:
    """Return a message about rows of a request with the names of their files."""
    return re.sub(
        r"Rows \[(\d+(?:, \d+)*)",
        lambda rows: f"Files [{', '.join(paths[int(row)] for row in rows[1].split(', '))}",
        message,
    )


def _predict(args: argparse.Namespace) -> Answer:
    clf = _any(args)
    paths = [path for source in args.images for path in read_pictures(source).paths]
    probabilities = clf.predict_proba(paths)
    found = [
        {"path": path, "class": clf.classes_.tolist()[row.argmax()], "confidence": float(row.max())}
        for path, row in zip(paths, probabilities, strict=True)
    ]
    lines = [
        f"{visible(row['path'])}\t{visible(row['class'])}\t{row['confidence']:.3f}" for row in found
    ]
    return Answer({"predictions": found}, "\n".join(lines))


def _report(args: argparse.Namespace) -> Answer:
    clf = _any(args)
    before = None if args.before is None else _any(args, args.before)
    receipts = clf.receipts_
    data: dict[str, Any] = {
        "n_learned": clf.n_samples_learned_,
        "n_forgotten": clf.n_samples_forgotten_,
        "receipts": receipts,
    }
    lines = [f"{clf.n_samples_learned_:,} rows learned, {clf.n_samples_forgotten_:,} forgotten."]
    if clf.n_samples_forgotten_ and not receipts:
        lines.append("The private state holds the receipts.")
    lines += [f"{r['time']}  {r['n_rows']:,} rows  {_exactness(clf, r)}" for r in receipts]
    paths, labels = None, None
    if args.data is not None:
        pictures, named = read_labelled(args.data)
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
    return Answer({"url": url}, f"Published the adapter, without the private state: {url}")


def _demo(args: argparse.Namespace) -> Answer:
    try:
        from .demo.app import serve
    except ImportError as error:
        raise ValueError(f'Expected gradio, got {error}. pip install "fastntk_sk[demo]".') from error
    serve(args.port, quiet=args.json)
    return Answer({}, "The app has ended.")


def _subset(text: str) -> str | list[str]:
    return text.split(",") if "," in text else text


def _alpha(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _key(args: argparse.Namespace) -> str | None:
    return None if args.key_file is None else args.key_file.read_text(encoding="utf-8").strip()


def _any(args: argparse.Namespace, path: str | None = None) -> FastNTKClassifier:
    """Load a private state, an adapter, or a repository of the Hub."""
    place = args.state if path is None else path
    if Path(place).is_file():
        return FastNTKClassifier.load(place, key=_key(args))
    return FastNTKClassifier.from_pretrained(place)


def _as_classes(clf: FastNTKClassifier, labels: list[str] | None, lenient: bool) -> list | None:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastntk", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., Answer], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print one JSON object")
        made.add_argument("--quiet", action="store_true", help="show no progress bars")
        if name not in ("zoo", "demo"):
            made.add_argument(
                "--key-file", type=Path, help="file with the passphrase of an encrypted state"
            )
        return made

    zoo = command("zoo", _zoo, "List the recipes of backbones.")
    zoo.add_argument("pattern", nargs="?", default="*", help="such as 'vit*'")

    fit = command("fit", _fit, "Learn pictures and save the state.")
    fit.add_argument("data", type=Path, help=DATA)
    fit.add_argument("--out", type=Path, required=True, help="file of the state, such as model.fastntk")
    fit.add_argument("--overwrite", action="store_true", help="replace a state and its receipts")
    fit.add_argument("--backbone", default="tf_efficientnet_lite0", help="a recipe or a timm name")
    fit.add_argument("--trainable", type=_subset, help="a subset, or several separated by commas")
    fit.add_argument("--anchor", choices=("pretrained", "finetuned"))
    fit.add_argument("--kernel", choices=("full", "pseudo"))
    fit.add_argument("--alpha", type=_alpha, help='a number, or "auto"')
    fit.add_argument("--n-components", type=int)
    fit.add_argument("--image-size", type=int)
    fit.add_argument("--random-state", type=int, default=0, help="0 by default")
    fit.add_argument("--random-weights", action="store_true", help="no pretrained weights")
    fit.add_argument("--num-workers", type=int, help="processes that read ahead")

    unlearn = command("unlearn", _unlearn, "Forget pictures and save the state again.")
    unlearn.add_argument("state", type=Path, help="file of the state")
    unlearn.add_argument(
        "--forget", type=Path, nargs="+", required=True, help="pictures, or lists of them"
    )
    unlearn.add_argument("--dry-run", action="store_true", help="only report whether it is possible")
    unlearn.add_argument("--all-copies", action="store_true", help="forget every copy of their content")

    rebuild = command(
        "rebuild", _rebuild, "Sum the remaining pictures anew, which ends numerical drift."
    )
    rebuild.add_argument("state", type=Path, help="file of the state")
    rebuild.add_argument("data", type=Path, help="exactly the pictures that are still learned")

    predict = command("predict", _predict, "Print the predicted classes of pictures.")
    predict.add_argument("state", help="a state, an adapter or a repository of the Hub")
    predict.add_argument("images", type=Path, nargs="+", help="pictures, folders or lists")

    report = command("report", _report, "Describe a model and its deletions.")
    report.add_argument("state", help="a state, an adapter or a repository of the Hub")
    report.add_argument("--data", type=Path, help=f"test pictures: a {DATA}")
    report.add_argument("--before", help="the same model before its deletions")
    report.add_argument("--html", type=Path, help="write a page with tables and pictures")

    push = command("push", _push, "Publish the adapter on the Hub.")
    push.add_argument("state", help="a state or an adapter")
    push.add_argument("repo", help="ORG/NAME")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", help="a branch")
    push.add_argument("--license")
    push.add_argument("--purge-history", action="store_true", help="delete earlier versions for good")

    demo = command("demo", _demo, "Open an app to learn pictures, pick some and forget them.")
    demo.add_argument("--port", type=int, default=7860)
    return parser


def _here(message: object) -> str:
    """Return a message of the library with its advice in terms of the command line, in one paragraph."""
    text = visible(message, keep="\n").replace("\n", "\n  ")
    for python, command in _COMMANDS.items():
        text = text.replace(python, command)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, default=None
        Arguments; None takes those of the process.

    Returns
    -------
    code : int
        0, or 1 if the command failed or a dry run found that it would. Wrong arguments exit with 2.

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
        warnings.showwarning = lambda message, *_: print(f"fastntk: {_here(message)}", file=sys.stderr)
        try:
            answer = args.run(args)
        except _FAILURES as error:
            if args.json:
                print(json.dumps({"error": type(error).__name__, "message": _here(error)}))
            print(f"fastntk: {_here(error)}", file=sys.stderr)
            return 1
    print(json.dumps(answer.data) if args.json else visible(answer.text, keep="\n\t"))
    return answer.code
