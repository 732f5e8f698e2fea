"""The root of the command line: its commands, and the options before them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from everlog.cli.again import replay, rewind
from everlog.cli.backup import backup
from everlog.cli.contracts import contracts
from everlog.cli.doctor import doctor
from everlog.cli.exits import CommandLine
from everlog.cli.migrate import migrate
from everlog.cli.parked import app as parked
from everlog.cli.publish import publish
from everlog.cli.restore import restore
from everlog.cli.retire import retire
from everlog.cli.run import run
from everlog.cli.skipped import app as skipped
from everlog.cli.status import status
from everlog.cli.tail import tail
from everlog.cli.topics import app as topics
from everlog.cli.verify import verify

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


app.command("run")(run)
app.command("publish")(publish)
app.command("tail")(tail)
app.add_typer(topics, name="topics")
app.command("status")(status)
app.add_typer(parked, name="parked")
app.add_typer(skipped, name="skipped")
app.command("contracts")(contracts)
app.command("replay")(replay)
app.command("rewind")(rewind)
app.command("retire")(retire)
app.command("migrate")(migrate)
app.command("verify")(verify)
app.command("backup")(backup)
app.command("restore")(restore)
app.command("doctor")(doctor)
