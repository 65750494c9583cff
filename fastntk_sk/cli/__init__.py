"""The command line: learn a folder of pictures, forget files, predict, report, publish."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import click

from .. import __version__
from ..escaping import visible
from .command import Group, epilog, output_options, tell
from .deletion import find, rebuild, rekey, unlearn
from .learning import fit, predict, report, zoo
from .publishing import demo, push
from .requests import requests

_INTERRUPTED = 130  # as shells say it


@output_options
@click.group(
    "fastntk",
    cls=Group,
    commands=[fit, predict, find, unlearn, rebuild, requests, report, push, rekey, zoo, demo],
    context_settings={"show_default": True},
    epilog=epilog(
        "fastntk fit pictures --out clinic.fastntk",
        "fastntk unlearn clinic.fastntk pictures/anna/0042.png",
        "fastntk report clinic.fastntk --html report.html",
    ),
)
@click.version_option(__version__, prog_name="fastntk")
def fastntk() -> None:
    """Learn a folder of pictures, and forget some of them exactly.

    Exit codes: 0 done; 1 failed, or a dry run found that it would; 2 wrong arguments; 130 interrupted.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, default=None
        Arguments; None takes those of the process.

    Returns
    -------
    code : int
        0; 1 if the command failed or a dry run found that it would; 2 if the arguments are wrong; 130 if
        it was interrupted.

    Examples
    --------
    >>> from fastntk_sk.cli import main
    >>> main(["zoo", "resnet18"])  # doctest: +ELLIPSIS
    name      weights ...
    resnet18  11.2 M ...
    0
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return fastntk.main(argv, prog_name="fastntk", standalone_mode=False)
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        click.echo(visible(told.getvalue(), keep="\n"), nl=False, err=True)
        return error.exit_code
    except click.Abort:
        tell("Interrupted.")
        return _INTERRUPTED
    except OSError as error:
        tell(f"The answer cannot be printed: {error.strerror}.")
        return 1
