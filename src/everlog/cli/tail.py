"""`everlog tail`: the log as it grows, with or without the contracts of its events."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Annotated

import msgspec
import typer

from everlog.cli.feed import Wanted, begin, feed
from everlog.cli.modules import chosen, contracts_of, load
from everlog.cli.options import AsJson, LogUrl, existing_log, settings_from
from everlog.cli.records import cloud_event, human_line
from everlog.cli.terminal import screen
from everlog.client.follower import Start
from everlog.contracts.cloudevents import outgoing
from everlog.position import Position
from everlog.record import StoredRecord
from everlog.settings import Settings


def tail(  # noqa: PLR0913 one per flag
    module: Annotated[
        str | None, typer.Argument(metavar="MODULE", help="Only topics that this module declares.", show_default=False)
    ] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only this type; repeatable.", show_default=False)
    ] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="Only this key.", show_default=False)] = None,
    topics: Annotated[
        list[str] | None, typer.Option("--topic", metavar="TOPIC", help="Only this topic; repeatable.", show_default=False)
    ] = None,
    start: Annotated[
        str, typer.Option("--from", metavar="WHERE", help="beginning, now, or a time like 2026-11-23T10:00.")
    ] = "now",
    after: Annotated[
        str | None, typer.Option("--after", metavar="TOKEN", help="Behind a position; goes before --from.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="End after N events.", show_default=False)
    ] = None,
    log_url: LogUrl = None,
    as_json: AsJson = False,
    as_cloud_events: Annotated[
        bool, typer.Option("--cloudevents", help="A CloudEvent 1.0 per line, as `publish --cloudevents` and the SDKs read it.")
    ] = False,
) -> None:
    """Print events as they are stored, until Ctrl-C."""
    if as_json and as_cloud_events:
        raise typer.BadParameter("give --json or --cloudevents, not both")
    names, known = frozenset(topics or ()), None
    if module is not None:
        contracts = contracts_of(load(module))
        known = list(contracts)
        names = names or frozenset(contract.topic.name for contract in contracts.values())
        for name in types or ():
            chosen(name, known, what="event type", where=module)
    wanted = Wanted(names, frozenset(types or ()), key, _start(start), after)
    settings = settings_from(log_url=log_url)
    with suppress(BrokenPipeError):  # who read has enough
        asyncio.run(
            _tail(
                settings,
                wanted,
                _printer(outgoing if as_cloud_events else cloud_event if as_json else None),
                limit,
                is_checked=module is not None,
            )
        )


def _start(text: str) -> Start:
    if text == "beginning":
        return "beginning"
    if text == "now":
        return "now"
    try:
        return datetime.fromisoformat(text).astimezone()  # without a zone it is the time here
    except ValueError as error:
        raise typer.BadParameter(
            f"expected beginning, now or a time like 2026-11-23T10:00, found {text!r}", param_hint="--from"
        ) from error


def _printer(form: Callable[..., Mapping[str, object]] | None) -> Callable[[Position, StoredRecord], None]:
    if form is not None:
        encoder = msgspec.json.Encoder()

        def print_json(position: Position, record: StoredRecord) -> None:
            sys.stdout.write(encoder.encode(form(record, position=position.token())).decode() + "\n")

        return print_json
    console = screen()

    def print_line(_: Position, record: StoredRecord) -> None:
        line = human_line(record)
        if console.is_terminal:
            console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            sys.stdout.write(f"{line.plain}\n")

    return print_line


async def _tail(
    settings: Settings, wanted: Wanted, show: Callable[[Position, StoredRecord], None], limit: int | None, *, is_checked: bool
) -> None:
    left = limit
    async with existing_log(settings) as log:
        offsets = await begin(log, wanted, is_checked=is_checked)
        async with aclosing(feed(log, wanted, offsets, _nobody_reads())) as batches:
            async for chunks in batches:
                for chunk in chunks:
                    for record in wanted.of(chunk):
                        offsets[chunk.where] = record.offset
                        show(Position(log.identity, dict(offsets)), record)
                        left = None if left is None else left - 1
                        if left == 0:
                            return
                    offsets[chunk.where] = chunk.last
                sys.stdout.flush()


async def _nobody_reads() -> None:
    """Wait until the pipe that stdout is has no reader left; for ever where stdout is none.

    Without it, `everlog tail | head -1` stays until the next event shows that nobody reads.
    """
    gone = asyncio.Event()
    with suppress(OSError, ValueError):  # a test's stdout has no number
        number = sys.stdout.fileno()
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            asyncio.get_running_loop().add_reader(number, gone.set)
    await gone.wait()
