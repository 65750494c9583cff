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
from functools import partial
from pathlib import Path
from typing import Any

from .backbones import inputs
from .backbones.folders import DATA, Pictures, read_labelled, read_pictures
from .backbones.recipes import Recipe, list_recipes, load_recipe
from .classifier import FastNTKClassifier
from .escaping import visible
from .exceptions import AmbiguousSampleError, FastNTKError, SampleError
from .publishing import files
from .publishing.exactness import exactness_text
from .requests import Requests
from .store import persistence
from .sums import memory
from .sums.statistics import Statistics

_FAILURES = (FastNTKError, ValueError, OSError, ImportError)
_CLASSES = 10  # assumed for the size of the statistics in the zoo's table
_FIT_PARAMETERS = (
    "trainable",
    "anchor",
    "kernel",
    "alpha",
    "n_components",
    "image_size",
    "keep",
    "augment",
    "random_state",
    "num_workers",
)
# what messages advise in Python, and what does the same here
_COMMANDS = {
    "rebuild(X, y)": "`fastntk rebuild`",
    "y_forget": "the column label",
    "copies='all'": "--all-copies",
    "sample_ids": "a column id",
    "skipped_ lists them": "they are named below",
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
        args.backbone,
        **given,
        on_error="skip" if args.skip_damaged else "raise",
        pretrained=not args.random_weights,
        verbose=not args.quiet,
    )
    clf.fit(pictures.paths, labels, sample_ids=pictures.ids)
    clf.set_params(verbose=0).save(args.out, key=key, overwrite=args.overwrite)
    skipped = [{"path": pictures.paths[each["row"]]} | each for each in clf.skipped_]
    _say_skipped(skipped)
    data = {
        "out": str(args.out),
        "n_learned": clf.n_samples_learned_,
        "classes": clf.classes_.tolist(),
        "skipped": skipped,
    }
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
    if bool(paths) == bool(args.id):
        raise ValueError("Expected either --forget, with pictures, or --id, got both or neither.")
    ids = [one for pictures in listed for one in pictures.ids or [None] * len(pictures.paths)]

    def request(clf: FastNTKClassifier) -> dict[str, Any]:
        options: dict[str, Any] = {"on_unknown": "skip" if args.skip_unknown else "raise"}
        if args.id:
            return options | {"X_forget": None, "sample_ids": _meant(clf, args.id)}
        # a folder of a request need not be named after a class; a file states its labels
        given = [
            _as_classes(clf, pictures.labels, source.is_dir())
            for source, pictures in zip(args.forget, listed, strict=True)
        ]
        named = any(one is not None for one in ids)
        return options | {
            "X_forget": paths,
            "y_forget": [one for part in given for one in part or ()] if None not in given else None,
            "sample_ids": _meant(clf, ids) if named else None,
            "copies": "all" if args.all_copies else "one",
        }

    if args.dry_run:
        clf = FastNTKClassifier.load(args.state, key=_key(args))
        report = clf.can_unlearn(**request(clf))
        report["files"] = [(paths or args.id)[i] for i in report.pop("indices")]
        # there are no rows where a picture cannot be read
        report["rows"] = [
            {"item": item} | row for item, row in zip(paths or args.id, report["rows"], strict=False)
        ]
        report["reason"] = _here(_with_files(report["reason"], paths))
        verdict = "can be forgotten" if report["possible"] else f"cannot: {report['reason']}"
        text = f"{report['n_rows']:,} learned rows {verdict} (about {report['seconds']:.1f} s)."
        return Answer(report, text, code=int(not report["possible"]))
    with _opened(args, paths) as clf:
        clf.unlearn(**request(clf), request_id=args.request_id or ())
    receipt = clf.receipts_[-1]
    rows = clf.can_unlearn(paths, copies="all")["rows"] if paths else []
    copies = [path for path, row in zip(paths, rows, strict=True) if row["result"] == "found"]
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


def _find(args: argparse.Namespace) -> Answer:
    clf = FastNTKClassifier.load(args.state, key=_key(args))
    paths = [path for source in args.images for path in read_pictures(source).paths]
    found = clf.find(paths, n=args.number, threshold=args.threshold)
    rows = [{"path": path} | row for path, each in zip(paths, found, strict=True) for row in each]
    lines = [
        f"{visible(row['path'])}\t{row['similarity']:.3f}\t{visible(row['sample_id'])}"
        f"\t{visible(row['label'])}"
        for row in rows
    ]
    return Answer({"found": rows}, "\n".join(lines) or "Nothing is like these pictures.")


def _rekey(args: argparse.Namespace) -> Answer:
    FastNTKClassifier.rekey(args.state, key=_key(args) or "", new_key=_passphrase(args.new_key_file))
    return Answer({"state": str(args.state)}, f"{args.state} is encrypted with the new key.")


def _request_add(args: argparse.Namespace) -> Answer:
    requests = Requests(args.state, key=_key(args))
    if args.csv is not None:
        added = requests.add_csv(args.csv)
    else:
        added = [
            requests.add(
                args.subject,
                sample_ids=args.id,
                files=args.file,
                note=args.note,
                received=args.received,
                days=args.days,
                request_id=args.request_id,
            )
        ]
    return Answer({"request_ids": added}, "\n".join(added))


def _request_list(args: argparse.Namespace) -> Answer:
    found = Requests(args.state, key=_key(args)).all()
    lines = [
        f"{visible(r.request_id)}\t{r.state}\treceived {r.received}\tdue {r.due}\t{visible(r.subject)}"
        f"{chr(9) + 'OVERDUE' if r.is_overdue else ''}"
        for r in found
    ]
    data = [vars(request) | {"overdue": request.is_overdue} for request in found]
    return Answer({"requests": data}, "\n".join(lines) or "There are no requests.")


def _request_rows(args: argparse.Namespace) -> Answer:
    requests = Requests(args.state, key=_key(args))
    rows = (requests.run if args.go else requests.show)(*args.request_ids)
    lines = [
        f"{visible(row['request_id'])}\t{visible(row['item'])}\t{row['result']}"
        f"\t{row['n_rows']:,} rows\t{row['copies_left']:,} copies left"
        for row in rows
    ]
    return Answer({"rows": rows}, "\n".join(lines) or "No request is open.")


def _request_close(args: argparse.Namespace) -> Answer:
    Requests(args.state, key=_key(args)).close(args.request_id, args.as_state)
    return Answer({"request_id": args.request_id}, f"{visible(args.request_id)} is closed.")


def _request_letter(args: argparse.Namespace) -> Answer:
    text = Requests(args.state, key=_key(args)).letter(args.request_id, args.reader)
    return Answer({"text": text}, text.rstrip())


def _rebuild(args: argparse.Namespace) -> Answer:
    pictures = Pictures([]) if args.data is None else read_pictures(args.data)
    with _opened(args, pictures.paths) as clf:
        if args.data is None:
            clf.rebuild()
        else:
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
    skipped = []
    if args.skip_damaged:
        reasons = [*inputs.unreadable(paths, range(len(paths)))]
        skipped = [
            {"path": path, "reason": reason}
            for path, reason in zip(paths, reasons, strict=True)
            if reason is not None
        ]
        _say_skipped(skipped)
        paths = [path for path, reason in zip(paths, reasons, strict=True) if reason is None]
        if not paths:
            raise ValueError(
                f"Expected a picture that can be read, got none among {len(skipped)} files."
            )
    probabilities = clf.predict_proba(paths)
    found = [
        {"path": path, "class": clf.classes_.tolist()[row.argmax()], "confidence": float(row.max())}
        for path, row in zip(paths, probabilities, strict=True)
    ]
    lines = [
        f"{visible(row['path'])}\t{visible(row['class'])}\t{row['confidence']:.3f}" for row in found
    ]
    return Answer({"predictions": found, "skipped": skipped}, "\n".join(lines))


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
    for r in receipts:
        rows = f"{r['n_rows']:,} rows{' rectified' if r['n_rectified'] else ''}"
        lines.append(f"{r['time']}  {rows}  {_exactness(clf, r)}")
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


def _say_skipped(skipped: list[dict[str, Any]]) -> None:
    """Name on the standard error the pictures that were left out, as they cannot be read."""
    for each in skipped:
        print(f"fastntk: left out: {_here(each['reason'])}", file=sys.stderr)


def _subset(text: str) -> str | list[str]:
    return text.split(",") if "," in text else text


def _alpha(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _key(args: argparse.Namespace) -> str | None:
    return None if args.key_file is None else _passphrase(args.key_file)


def _passphrase(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip()


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


def _add(commands: Any, name: str, run: Callable[..., Answer], text: str) -> argparse.ArgumentParser:
    """Add a command to a group."""
    made = commands.add_parser(name, help=text, description=text)
    made.set_defaults(run=run)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--quiet", action="store_true", help="show no progress bars")
    if name not in ("zoo", "demo"):
        made.add_argument("--key-file", type=Path, help="file with the passphrase of an encrypted state")
    return made


def _add_requests(commands: Any) -> None:
    """Add the commands about requests to be forgotten."""
    text = "Keep requests to be forgotten beside the state, and run them as one deletion."
    group = commands.add_parser("request", help=text, description=text)
    actions = group.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Callable[..., Answer], text: str) -> argparse.ArgumentParser:
        made = _add(actions, name, run, text)
        made.add_argument("state", type=Path, help="file of the state")
        return made

    add = action("add", _request_add, "Add a request, or those of a CSV file; print its id.")
    add.add_argument("--subject", default="", help="who asks; erased when it is done")
    add.add_argument("--id", nargs="+", default=[], help="sample ids to be forgotten")
    add.add_argument("--file", type=Path, nargs="+", default=[], help="pictures to be forgotten")
    add.add_argument("--csv", type=Path, help="columns id or path; request_id, subject, received, note")
    add.add_argument("--note", default="", help="erased when it is done")
    add.add_argument("--received", help="ISO date; today by default")
    add.add_argument("--days", type=int, default=30, help="until it is due; 30 by default")
    add.add_argument("--request-id", help="an opaque name for the receipt; drawn by default")
    action("list", _request_list, "List requests, the open ones by their due dates.")
    for name, go, text in (
        ("show", False, "Show what would go, row by row."),
        ("run", True, "Forget what the open requests name, as one deletion."),
    ):
        rows = action(name, _request_rows, text)
        rows.set_defaults(go=go)
        rows.add_argument("request_ids", nargs="*", help="all that are open, by default")
    close = action("close", _request_close, "Close a request without a deletion.")
    close.add_argument("request_id")
    close.add_argument("--as", dest="as_state", choices=("refused", "nothing held"), default="refused")
    letter = action("letter", _request_letter, "Print a text about a request that is done.")
    letter.add_argument("request_id")
    letter.add_argument("--reader", choices=("person", "auditor"), default="person")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastntk", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = partial(_add, commands)

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
    fit.add_argument("--keep", choices=("features",), help="forget by name; see the documentation")
    fit.add_argument("--augment", choices=("flip",), help="mirror images; twice the passes")
    fit.add_argument("--random-weights", action="store_true", help="no pretrained weights")
    fit.add_argument("--skip-damaged", action="store_true", help="leave out what cannot be read")
    fit.add_argument("--num-workers", type=int, help="processes that read ahead")

    unlearn = command("unlearn", _unlearn, "Forget pictures and save the state again.")
    unlearn.add_argument("state", type=Path, help="file of the state")
    unlearn.add_argument("--forget", type=Path, nargs="+", default=[], help="pictures, or lists of them")
    unlearn.add_argument(
        "--id", nargs="+", default=[], help="sample ids, of a state that keeps features"
    )
    unlearn.add_argument("--skip-unknown", action="store_true", help="forget the rest of the request")
    unlearn.add_argument("--request-id", help="an opaque name for the receipt")
    unlearn.add_argument("--dry-run", action="store_true", help="only report whether it is possible")
    unlearn.add_argument("--all-copies", action="store_true", help="forget every copy of their content")

    rebuild = command(
        "rebuild", _rebuild, "Sum the remaining pictures anew, which ends numerical drift."
    )
    rebuild.add_argument("state", type=Path, help="file of the state")
    rebuild.add_argument(
        "data", type=Path, nargs="?", help="exactly the pictures that are left; none with --keep"
    )

    find = command("find", _find, "Find learned rows that are like pictures.")
    find.add_argument("state", type=Path, help="file of a state that keeps features")
    find.add_argument("images", type=Path, nargs="+", help="pictures, folders or lists")
    find.add_argument("--number", type=int, default=5, help="rows a picture; 5 by default")
    find.add_argument("--threshold", type=float, default=0.9, help="least similarity; 0.9 by default")

    rekey = command("rekey", _rekey, "Encrypt a state with another key.")
    rekey.add_argument("state", type=Path, help="file of an encrypted state")
    rekey.add_argument("--new-key-file", type=Path, required=True, help="file with the new passphrase")

    _add_requests(commands)

    predict = command("predict", _predict, "Print the predicted classes of pictures.")
    predict.add_argument("state", help="a state, an adapter or a repository of the Hub")
    predict.add_argument("images", type=Path, nargs="+", help="pictures, folders or lists")
    predict.add_argument("--skip-damaged", action="store_true", help="leave out what cannot be read")

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
