"""The root of the command line: its commands, and the options before them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from everlog.cli import parked, publish, retire, run, status, tail, topics, verify
from everlog.cli.exits import CommandLine

app = typer.Typer(cls=CommandLine, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(is_asked: bool) -> None:
    if is_asked:
        print(f"everlog {version('everlog')}")
        raise typer.Exit


@app.callback()
def root(
    is_debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    is_version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Events in a durable log, pushed to every subscriber, handled exactly once."""


app.command("run")(run.run)
app.command("publish")(publish.publish)
app.command("tail")(tail.tail)
app.command("topics")(topics.topics)
app.command("status")(status.status)
app.add_typer(parked.app, name="parked")
app.command("retire")(retire.retire)
app.command("verify")(verify.verify)
