"""Commands that show a model to others: push, demo."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from .command import PLACE, Answer, Output, command, flag, key_file_option
from .states import load_model


@command(
    "push",
    "fastntk push clinic.fastntk me/adapter",
    "fastntk push clinic.fastntk me/adapter --purge-history",
)
@click.argument("model", type=PLACE)
@click.argument("repository", metavar="ORG/NAME")
@flag("--private", "Make a repository that does not exist yet private.")
@click.option("--revision", show_default="main", help="Branch; made if it does not exist.")
@click.option(
    "--license",
    show_default="that of the backbone's weights",
    help="Identifier of the Hub for the licence of the adapter.",
)
@flag("--purge-history", "Delete earlier versions for good, as they hold what was forgotten.")
@key_file_option
def push(
    output: Output,
    model: str,
    repository: str,
    private: bool,
    revision: str | None,
    license: str | None,
    purge_history: bool,
    key_file: Path | None,
) -> Answer:
    """Publish the adapter on the Hub, without the private state.

    MODEL is a state, or a folder with an adapter.
    """
    clf = load_model(model, key_file, output.quiet)
    url = clf.push_to_hub(
        repository,
        private=private or None,
        revision=revision,
        license=license,
        purge_history=purge_history,
    )
    return Answer({"url": url}, f"Published the adapter, without the private state: {url}")


@command("demo", "fastntk demo --port 8000")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=7860, help="Port of this machine that answers."
)
def demo(output: Output, port: int) -> Answer:
    """Open an app in which pictures are learned, picked and forgotten.

    It answers this machine alone, until Ctrl-C.
    """
    try:
        from ..demo.app import serve
    except ImportError as error:
        raise ValueError(f'Expected gradio, got {error}. pip install "fastntk_sk[demo]".') from error
    try:
        with socket.create_server(("127.0.0.1", port)):
            pass
    except OSError as error:
        raise ValueError(
            f"Expected a port that is free, got {port} ({error.strerror}). Pass another --port."
        ) from error
    serve(port, quiet=output.json)
    return Answer({}, "The app has ended.")
