"""`everlog verify`: reading everything, to prove that the log holds what it promises."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from everlog.cli.audit import MOST_IDS, Audit
from everlog.cli.exits import FAILED
from everlog.cli.modules import contracts_of, load
from everlog.cli.options import AsJson, LogUrl, StoreUrl, existing_log, existing_store, settings_from
from everlog.cli.terminal import counted, print_json, printable, screen
from everlog.contracts.contract import Contract
from everlog.errors import FileError, RecordsGone, StartRefused
from everlog.log import Log, TopicSpec
from everlog.position import Offset, TopicPartition
from everlog.settings import Settings, resolve, shown
from everlog.topics import merged

_SILENCE_S: Final = 10.0
"""A reader waits where the log promises more than it holds; below its head there is nothing to wait for."""


def verify(
    contracts: Annotated[
        str | None,
        typer.Option(
            "--contracts", metavar="MODULE", help="Decode each event by the contracts of this module.", show_default=False
        ),
    ] = None,
    apps: Annotated[
        list[str] | None,
        typer.Option("--app", metavar="APP", help="Check the store of this app too; repeatable.", show_default=False),
    ] = None,
    log_url: LogUrl = None,
    store_url: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Read every event and check the file, the checksums, order, keys, numbers, ids and data. Exits with 1 when something is wrong."""
    settings = settings_from(log_url=log_url, store_url=store_url)
    known = contracts_of(load(contracts)) if contracts is not None else None
    audit = asyncio.run(_verify(settings, known, apps or []))
    if as_json:
        print_json(_shown(audit, settings))
    else:
        _print(audit, settings, contracts)
    if audit.findings:
        raise typer.Exit(FAILED)


async def _verify(settings: Settings, contracts: Mapping[str, Contract[Any]] | None, apps: Sequence[str]) -> Audit:
    async with existing_log(settings) as log:
        audit = Audit(contracts, has_log_time=log.features.log_time)
        for line in await log.verify():
            audit.found(line)
        specs = await log.topics()
        if contracts is not None:
            _check_declared(specs, contracts, audit)
        total = 0
        for spec in specs:
            first = await log.first(spec.name)
            total += (await log.backlog(spec.name, {where.partition: offset for where, offset in first.offsets.items()})).count
        with _progress(total) as advance:
            for spec in specs:
                firsts, heads = (await log.first(spec.name)).offsets, (await log.head(spec.name)).offsets
                for where in sorted(heads):
                    await _partition(log, spec, where, (firsts[where], heads[where]), audit, advance)
        for app in apps:
            async with existing_store(settings, app) as store:
                audit.stores.append(app)
                for line in await store.verify():
                    audit.found(f"store of {app}: {line}")
                other = (await store.status()).log
                if other not in (None, log.identity):
                    audit.found(f"store of {app}: it belongs to log {other}, and this is {log.identity}")
        return audit


def _check_declared(specs: Sequence[TopicSpec], contracts: Mapping[str, Contract[Any]], audit: Audit) -> None:
    """Check that the topics and schemas in the log are those that the module declares."""
    declared = {contract.topic.name: contract.topic for contract in contracts.values()}
    for spec in specs:
        if spec.name in declared:
            try:
                merged(spec, declared[spec.name].spec())
            except StartRefused as error:
                audit.found(str(error))


async def _partition(
    log: Log, spec: TopicSpec, where: TopicPartition, span: tuple[Offset, Offset], audit: Audit, advance: Callable[[int], None]
) -> None:
    """Check a partition up to the head that it had. Damage ends it, and the next partition goes on."""
    first, head = span
    checked = audit.partition(spec, where, first)
    reader = log.reader({where: first})
    through = first
    try:
        while through < head:
            try:
                async with asyncio.timeout(_SILENCE_S):
                    batch = await reader.next()
            except RecordsGone as gone:
                through = Offset(gone.first)
                checked.skip(through)
                reader.revoke([where])
                reader.assign({where: through})
                continue
            for chunk in batch.chunks:
                checked.take(chunk)
                advance(len(chunk))
            through = batch.through.get(where, through)
    except FileError as error:
        audit.found(f"{where.topic}/{where.partition}: {error}; nothing behind it was checked")
    except TimeoutError:
        checked.check_end(head)
    finally:
        reader.close()


@contextmanager
def _progress(total: int) -> Generator[Callable[[int], None]]:
    """Show a bar on stderr where somebody sees it; yields what to call with the number of records checked."""
    if not sys.stderr.isatty():
        yield _not_shown
        return
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TextColumn("events"), TimeRemainingColumn())
    with Progress(*columns, console=screen(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)

        yield advance


def _not_shown(_: int) -> None:
    """Take a count that nobody sees."""


def _print(audit: Audit, settings: Settings, module: str | None) -> None:
    console = screen()
    for finding in audit.findings:
        console.print(printable(finding), style="red", soft_wrap=True)
    if audit.more_findings:
        console.print(f"and {audit.more_findings:,} more", style="red")
    what = (
        "file, checksums, offsets, times, keys, numbers, data"
        + (", ids" if audit.ids_checked else "")
        + "".join(f", store of {app}" for app in audit.stores)
        + (", contracts" if module else "")
    )
    console.print(
        f"{shown(resolve(settings.log_url))}: {counted(audit.records, 'event')} in {counted(audit.partitions, 'partition')}",
        soft_wrap=True,
    )
    console.print(f"checked: {what}", soft_wrap=True)
    if not audit.ids_checked:
        console.print(f"not checked: that ids are unique, since there are more than {MOST_IDS:,} events", soft_wrap=True)
    for name, count in sorted(audit.unknown.items()):
        console.print(
            f"not decoded: {counted(count, 'event')} of {printable(name)}, which {module} does not declare", soft_wrap=True
        )
    total = len(audit.findings) + audit.more_findings
    console.print("nothing is wrong" if not total else f"{counted(total, 'finding')}", style="bold")


def _shown(audit: Audit, settings: Settings) -> dict[str, Any]:
    return {
        "log": shown(resolve(settings.log_url)),
        "events": audit.records,
        "partitions": audit.partitions,
        "findings": audit.findings,
        "more_findings": audit.more_findings,
        "ids_checked": audit.ids_checked,
        "stores": audit.stores,
        "not_decoded": audit.unknown,
    }
