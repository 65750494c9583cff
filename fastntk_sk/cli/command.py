"""What every command shares: its options for output, its answer, and how it tells a failure."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ..escaping import visible
from ..exceptions import FastNTKError

# torch raises RuntimeError where memory or the size of pictures does not suffice
_FAILURES = (FastNTKError, ValueError, OSError, ImportError, RuntimeError, MemoryError)
# what messages advise in Python, and what does the same here: phrases that are in no name of a file
_COMMANDS = {
    "rebuild(X, y)": "`fastntk rebuild`",
    "Pass y_forget or sample_ids, or copies='all'": "List it with its label or id, or pass --all-copies",
    "Pass copies='all'": "Pass --all-copies",
    "Leave y_forget ": "Leave the column label ",
    "skipped_ lists them": "they are named below",
    "sample_ids or files": "pictures or --id",
    "Pass the key of save(): key=...": "Pass --key-file.",
    "Pass the key of save().": "Pass its own --key-file.",
    "Leave the key out": "Leave --key-file out",
    "Pass the path that was given to save()": "Pass the --out of `fastntk fit`",
    "Read it with FastNTKClassifier.from_pretrained": "Pass the file of the state",
    " A folder of a public adapter is read by FastNTKClassifier.from_pretrained.": "",
    "load what save() wrote with FastNTKClassifier.load": "pass the file of the state",
    'it with keep="features"': "it with --keep features",
    "or pretrained=False for": "or --random-weights for",
    "Pass image_size=...": "Pass --image-size",
    "Pass num_workers=0": "Pass --num-workers 0",
    'such as backbone="tf_efficientnet_lite0"': "such as --backbone tf_efficientnet_lite0",
    "list_recipes() and timm.list_models() list the names": "`fastntk zoo` lists recipes",
    "List them: Requests(path).all()": "`fastntk requests list` lists them",
}


class _File(click.Path):
    """A path; an empty one, of a shell's variable that is not set, is not the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if not value:
            self.fail("Expected a path, got an empty text.", param, ctx)
        return super().convert(value, param, ctx)


FILE = _File(path_type=Path)
PLACE = _File()


@dataclass
class Output:
    """How a command speaks: as the options before its name, or after it, say."""

    json: bool = False
    quiet: bool = field(default_factory=lambda: sys.stderr is None)  # for want of a place


@dataclass(frozen=True)
class Answer:
    """The result of a command, as data for --json and as text."""

    data: dict[str, Any]
    text: str
    code: int = 0


class Command(click.Command):
    """A command that prints its answer, or a sentence about its failure, and returns the exit code."""

    def invoke(self, ctx: click.Context) -> int:
        """Run the command."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: tell(message)
            try:
                answer = super().invoke(ctx)
            except BrokenPipeError:  # click ends quietly where nobody reads any more
                raise
            except _FAILURES as error:
                tell(error)
                answer = Answer({"error": type(error).__name__, "message": here(error)}, "", code=1)
        if ctx.obj.json:
            click.echo(json.dumps(answer.data))
        elif answer.text:
            click.echo(visible(answer.text, keep="\n\t"))
        return answer.code


class Group(click.Group):
    """Commands in the order in which they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)


def command(name: str, *examples: str) -> Callable[[Callable[..., Answer]], Command]:
    """Return a decorator that makes a command of a function, which takes `Output` first."""

    def decorate(run: Callable[..., Answer]) -> Command:
        made = click.command(name, cls=Command, epilog=epilog(*examples))(click.pass_obj(run))
        return output_options(made)

    return decorate


def epilog(*examples: str) -> str:
    """Return how the help of a command ends."""
    return "\n".join(
        ["\b", "Example:" if len(examples) == 1 else "Examples:", *map("  {}".format, examples)]
    )


def flag(name: str, text: str) -> Callable[[Any], Any]:
    """Return an option that is off unless it is named."""
    return click.option(name, is_flag=True, show_default="off", help=text)


def output_options(made: Any) -> Any:
    """Add --quiet and --json to a command or a group: they hold before and after a command's name."""
    for name, text in (("quiet", "Show no progress bars."), ("json", "Print one JSON object.")):
        option = click.option(
            f"--{name}",
            is_flag=True,
            expose_value=False,
            callback=_note,
            show_default="off",
            help=text,
        )
        made = option(made)
    return made


def _note(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    output = ctx.ensure_object(Output)
    if value:
        setattr(output, str(parameter.name), True)


names_option = click.option(
    "--id",
    "names",
    multiple=True,
    show_default="none",
    help="Forget all that was learned under an id, with --keep features; may be repeated.",
)
key_file_option = click.option(
    "--key-file",
    type=FILE,
    show_default="none",
    help="File with the key of an encrypted state: a passphrase, or 32 bytes.",
)


def tell(message: object) -> None:
    """Print a sentence on the standard error."""
    click.echo(f"fastntk: {here(message)}", err=True)


def here(message: object) -> str:
    """Return a message of the library with its advice in terms of the command line, in one paragraph."""
    if isinstance(message, OSError) and message.filename is not None:
        message = f"{message.strerror}: {message.filename2 or message.filename}"
    text = visible(message, keep="\n").replace("\n", "\n  ")
    for python, command_line in _COMMANDS.items():
        text = text.replace(python, command_line)
    return text
