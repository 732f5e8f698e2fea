"""`everlog publish`: events or CloudEvents from a file of JSON lines, from a pipe, or from the command line itself."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from everlog.cli.lines import Batch, Line, batches
from everlog.cli.modules import chosen, contracts_of, load
from everlog.cli.options import AsJson, LogUrl, NoCreateTopics, settings_from
from everlog.cli.reading import CloudEventLines, DataLines, Reading, Told
from everlog.cli.sending import Sender
from everlog.cli.terminal import counted, print_json, screen
from everlog.contracts.contract import Contract
from everlog.contracts.envelope import check_headers
from everlog.errors import CommandRefused, EverlogError
from everlog.position import TopicPartition


class Input(NamedTuple):
    """Where the lines come from."""

    name: str
    path: Path | None
    """A regular file, which can be read twice; ``None`` for a stream."""
    data: str | None
    """The one event of `--data`."""


def publish(  # noqa: PLR0913 one per flag
    module: Annotated[str, typer.Argument(metavar="MODULE", help="The module that declares the type.", show_default=False)],
    type_name: Annotated[
        str | None,
        typer.Argument(
            metavar="[TYPE]", help="The type on the wire: shop.order_placed/1. CloudEvents have their own.", show_default=False
        ),
    ] = None,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A file with a JSON object per line; - is stdin.", show_default=False)
    ] = "-",
    data: Annotated[
        str | None, typer.Option("--data", metavar="JSON", help="One event, instead of a file.", show_default=False)
    ] = None,
    producer: Annotated[
        str | None,
        typer.Option(
            "--producer",
            metavar="NAME",
            help="One name per file: what was stored under it is not stored again.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="The key, for a topic without a key field.", show_default=False)
    ] = None,
    headers: Annotated[
        list[str] | None,
        typer.Option("--header", metavar="NAME=VALUE", help="A header of each event; repeatable.", show_default=False),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="Who says so; cli by default.", show_default=False)
    ] = None,
    as_cloud_events: Annotated[
        bool, typer.Option("--cloudevents", help="Each line is a CloudEvent 1.0, of any type in MODULE.")
    ] = False,
    log_url: LogUrl = None,
    no_create_topics: NoCreateTopics = False,
    as_json: AsJson = False,
) -> None:
    """Publish events. A file is checked as a whole before its first event is sent; a pipe as it comes."""
    settings = settings_from(log_url=log_url, no_create_topics=no_create_topics)
    reading: Reading
    if as_cloud_events:
        _refuse_told({"--key": key, "--header": headers, "--source": source})
        origin = _input(_only_file(type_name, file), data)
        told = Told("cli", {}, None, producer)
        reading = CloudEventLines(contracts_of(load(module)), module)
    else:
        if type_name is None:
            raise typer.BadParameter("expected the type of the events, or --cloudevents, found neither", param_hint="TYPE")
        if source == "":
            raise typer.BadParameter("expected a name, found an empty one", param_hint="--source")
        contracts = contracts_of(load(module))
        contract = contracts[chosen(type_name, list(contracts), what="event type", where=module)]
        told = Told(source or "cli", _headers(headers or []), _checked_key(key, contract), producer)
        origin = _input(file, data)
        reading = DataLines(contract, told)
    # The loop turns only while events are sent: between two batches this thread may wait for a pipe, and Ctrl-C must reach it.
    with asyncio.Runner() as runner, _bar(origin) as bar:
        needed = _check(origin, reading, told, bar) if origin.path is not None else None
        sender = runner.run(Sender.opened(settings, reading, told))
        try:
            if needed is not None:
                sender.check_grown(needed, origin.name)
            _send(runner, sender, origin, bar)
        finally:
            runner.run(sender.aclose())
    _print_result(sender, reading, as_json=as_json)


def _refuse_told(given: Mapping[str, object]) -> None:
    """Refuse what a CloudEvent says itself."""
    for flag, value in given.items():
        if value:
            raise typer.BadParameter("a CloudEvent says that itself: leave one of them out", param_hint=f"{flag}, --cloudevents")


def _only_file(first: str | None, second: str) -> str:
    """Return the file where `MODULE TYPE FILE` has no type."""
    if first is not None and second != "-":
        raise typer.BadParameter(
            f"with --cloudevents each event says its type: expected MODULE [FILE], found {first} and {second}", param_hint="TYPE"
        )
    return first or "-"


def _headers(texts: Sequence[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected NAME=VALUE, found {text!r}", param_hint="--header")
        headers[name] = value
    check_headers(headers)
    return headers


def _checked_key(key: str | None, contract: Contract[Any]) -> str | None:
    if key is not None and contract.topic.key is not None:
        raise typer.BadParameter(
            f"topic {contract.topic.name!r} takes its key from the field {contract.topic.key!r} of each event", param_hint="--key"
        )
    return key


def _input(file: str, data: str | None) -> Input:
    if data is not None:
        if file != "-":
            raise typer.BadParameter("expected FILE or --data, found both", param_hint="--data")
        return Input("--data", None, data)
    if file == "-":
        if sys.stdin.isatty():
            screen(stderr=True).print("a JSON object per line; Ctrl-D ends")
        return Input("stdin", None, None)
    path = Path(file)
    if not path.exists() or path.is_dir():
        raise typer.BadParameter(f"{file} {'is a folder' if path.is_dir() else 'does not exist'}", param_hint="FILE")
    return Input(file, path if path.is_file() else None, None)


@contextmanager
def _opened(origin: Input) -> Generator[BinaryIO]:
    if origin.data is not None:
        yield BytesIO(origin.data.replace("\n", " ").encode())
    elif origin.name == "stdin":
        yield sys.stdin.buffer
    else:
        try:
            stream = Path(origin.name).open("rb")  # noqa: SIM115 closed below; only the opening is translated
        except OSError as error:
            raise CommandRefused(f"{origin.name} cannot be read: {error.strerror}") from error
        with stream:
            yield stream


class _Bar(NamedTuple):
    progress: Progress
    task: TaskID

    def show(self, what: str, done: int) -> None:
        self.progress.update(self.task, description=what, completed=done)


def _bar(origin: Input) -> Any:
    """Return a context with a progress bar on stderr, or with ``None`` where nobody would see it or it would tell nothing."""
    if origin.path is None or not sys.stderr.isatty():
        return nullcontext(None)
    return _shown_bar(origin.path.stat().st_size)


@contextmanager
def _shown_bar(total: int) -> Generator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("bytes"), TimeElapsedColumn())
    with Progress(*columns, console=screen(stderr=True), transient=True) as progress:
        yield _Bar(progress, progress.add_task("checking", total=total))


def _read(origin: Input, what: str, bar: _Bar | None) -> Iterator[Sequence[Line]]:
    with _opened(origin) as stream:
        batch: Batch
        for batch in batches(stream, origin.name):
            yield batch.lines
            if bar is not None:
                bar.show(what, batch.read_bytes)


def _check(origin: Input, reading: Reading, told: Told, bar: _Bar | None) -> Counter[TopicPartition]:
    """Check every line of a file, so that a bad one publishes nothing; return how many go to each partition."""
    counts: Counter[TopicPartition] = Counter()
    spread = told.spread()
    for lines in _read(origin, "checking", bar):
        for target in reading.addressed(lines, spread, origin.name):
            counts.update([TopicPartition(target.topic.name, record.partition) for record in target.records])
    return counts


def _send(runner: asyncio.Runner, sender: Sender, origin: Input, bar: _Bar | None) -> None:
    try:
        for lines in _read(origin, "publishing", bar):
            runner.run(sender.send(lines, origin.name))
    except EverlogError as error:
        raise CommandRefused(f"{error} ({_so_far(sender)})") from error
    except KeyboardInterrupt:
        screen(stderr=True).print(f"everlog: interrupted: {_so_far(sender)}", soft_wrap=True)
        raise


def _so_far(sender: Sender) -> str:
    skipped = f", {sender.skipped:,} were stored before" if sender.skipped else ""
    count = sender.published.total()
    return f"{counted(count, 'event') if count else 'nothing'} published before that{skipped}"


def _print_result(sender: Sender, reading: Reading, *, as_json: bool) -> None:
    count = sender.published.total()
    topics = sorted(sender.published) or [topic.name for topic in reading.topics if len(reading.topics) == 1]
    if as_json:
        by_topic = {"topic": topics[0]} if len(reading.topics) == 1 else {"topics": dict(sorted(sender.published.items()))}
        print_json({**by_topic, "published": count, "skipped": sender.skipped, "position": sender.position().token()})
        return
    skipped = f"; {sender.skipped:,} more were stored before" if sender.skipped else ""
    where = f" to {', '.join(topics)}" if topics else ""
    screen().print(f"published {counted(count, 'event')}{where}{skipped}", soft_wrap=True)
