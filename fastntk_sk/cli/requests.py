"""Commands about requests to be forgotten, which are kept beside the state."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..escaping import visible
from ..wording import counted
from .command import (
    FILE,
    Answer,
    Group,
    Output,
    command,
    epilog,
    key_file_option,
    names_option,
    output_options,
)
from .states import key_in

if TYPE_CHECKING:
    from ..requests import Requests


@command(
    "add",
    'fastntk requests add clinic.fastntk anna.jpg --subject "Anna B." --id anna',
    "fastntk requests add clinic.fastntk --csv requests.csv",
)
@click.argument("state", type=FILE)
@click.argument("pictures", type=FILE, nargs=-1)
@names_option
@click.option("--subject", default="", help="Who asks; erased when the request is closed.")
@click.option("--note", default="", help="What else is to be known; erased when the request is closed.")
@click.option(
    "--received",
    type=click.DateTime(("%Y-%m-%d",)),
    show_default="today",
    help="Day on which it came in, such as 2026-11-30.",
)
@click.option("--days", type=click.IntRange(0, 3650), default=30, help="Days until the request is due.")
@click.option(
    "--request-id", show_default="drawn at random", help="Opaque name, which the receipt shows."
)
@click.option(
    "--csv",
    type=FILE,
    show_default="none",
    help="Add the requests of a CSV file instead: columns id or path, and perhaps request_id, subject, "
    "received and note.",
)
@key_file_option
def add(
    output: Output,
    state: Path,
    pictures: tuple[Path, ...],
    names: tuple[str, ...],
    received: datetime | None,
    csv: Path | None,
    key_file: Path | None,
    **request: Any,
) -> Answer:
    """Add a request, or those of a CSV file, and print its name.

    PICTURES are the files that are to be forgotten.
    """
    requests = _held(state, key_file)
    if csv is None:
        day = None if received is None else received.date().isoformat()
        added = [requests.add(sample_ids=names, files=pictures, received=day, **request)]
    elif others := _given() - {"state", "csv", "key_file"}:
        raise ValueError(
            f"Expected --csv alone, whose lines say the rest, got it with {', '.join(sorted(others))}."
        )
    else:
        added = requests.add_csv(csv)
    return Answer({"request_ids": added}, "\n".join(map(visible, added)))


@command("list", "fastntk requests list clinic.fastntk")
@click.argument("state", type=FILE)
@key_file_option
def list_(output: Output, state: Path, key_file: Path | None) -> Answer:
    """List requests, those that are due first before others."""
    found = _held(state, key_file).all()
    lines = [
        f"{visible(one.request_id)}\t{one.state}\treceived {one.received}\tdue {one.due}"
        f"\t{visible(one.subject)}{chr(9) + 'OVERDUE' if one.is_overdue else ''}"
        for one in found
    ]
    data = [vars(request) | {"overdue": request.is_overdue} for request in found]
    return Answer({"requests": data}, "\n".join(lines) or "There are no requests.")


@command("show", "fastntk requests show clinic.fastntk", "fastntk requests show clinic.fastntk 5f0c3b7a")
@click.argument("state", type=FILE)
@click.argument("request_ids", nargs=-1)
@key_file_option
def show(output: Output, state: Path, request_ids: tuple[str, ...], key_file: Path | None) -> Answer:
    """Show what would be forgotten, by picture and by id.

    REQUEST_IDS are some requests; without them, all that are open.
    """
    return _rows(_held(state, key_file).show(*request_ids))


@command("run", "fastntk requests run clinic.fastntk", "fastntk requests run clinic.fastntk 5f0c3b7a")
@click.argument("state", type=FILE)
@click.argument("request_ids", nargs=-1)
@key_file_option
def run(output: Output, state: Path, request_ids: tuple[str, ...], key_file: Path | None) -> Answer:
    """Forget what open requests name, as one deletion.

    REQUEST_IDS are some requests; without them, all that are open.
    """
    return _rows(_held(state, key_file, verbose=int(not output.quiet)).run(*request_ids))


def _given() -> set[str]:
    """Return the names of the parameters that the command line has."""
    context = click.get_current_context()
    return {
        name
        for name in context.params
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }


def _held(state: Path, key_file: Path | None, verbose: int = 0) -> Requests:
    """Return the requests beside a state."""
    from ..requests import Requests

    return Requests(state, key=key_in(key_file), verbose=verbose)


def _rows(rows: list[dict[str, Any]]) -> Answer:
    lines = [
        f"{visible(row['request_id'])}\t{visible(row['item'])}\t{row['result']}"
        f"\t{counted(row['n_rows'], 'row')}\t{row['copies_left']:,} copies left"
        for row in rows
    ]
    return Answer({"rows": rows}, "\n".join(lines) or "No request is open.")


@command(
    "close",
    'fastntk requests close clinic.fastntk 5f0c3b7a --as "nothing held"',
    'fastntk requests close clinic.fastntk 5f0c3b7a --reason "The law has us keep it until 2031."',
)
@click.argument("state", type=FILE)
@click.argument("request_id")
@click.option(
    "--as",
    "closed_as",
    type=click.Choice(("refused", "nothing held")),
    default="refused",
    help="What became of it.",
)
@click.option("--reason", default="", help="Why it is refused, for its letters; it is kept.")
@key_file_option
def close(
    output: Output, state: Path, request_id: str, closed_as: Any, reason: str, key_file: Path | None
) -> Answer:
    """Close a request without a deletion.

    Its subject, note and names are erased.
    """
    _held(state, key_file).close(request_id, closed_as, reason=reason)
    return Answer({"request_id": request_id}, f"{visible(request_id)} is closed.")


@command("letter", "fastntk requests letter clinic.fastntk 5f0c3b7a --reader auditor")
@click.argument("state", type=FILE)
@click.argument("request_id")
@click.option(
    "--reader",
    type=click.Choice(("person", "auditor")),
    default="person",
    help="Whom the text is for.",
)
@key_file_option
def letter(output: Output, state: Path, request_id: str, reader: str, key_file: Path | None) -> Answer:
    """Print a text about a request that is closed.

    It is for the person who asked, or for an auditor.
    """
    text = _held(state, key_file).letter(request_id, reader)
    return Answer({"text": text}, text.rstrip())


@output_options
@click.group(
    "requests",
    cls=Group,
    commands=[add, list_, show, run, close, letter],
    epilog=epilog(
        "fastntk requests add clinic.fastntk --id anna",
        "fastntk requests run clinic.fastntk",
    ),
)
def requests() -> None:
    """Keep requests to be forgotten, and run them as one deletion."""
