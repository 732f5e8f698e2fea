"""`everlog doctor`: what an app relies on, looked at from outside, with what to do about each finding."""

from __future__ import annotations

import asyncio
import platform
import re
from collections.abc import Awaitable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.table import Table
from rich.text import Text

from everlog.cli.exits import FAILED
from everlog.cli.options import AsJson, LogUrl, StoreUrl, settings_from
from everlog.cli.terminal import counted, print_json, printable, screen
from everlog.clock import Clock, SystemClock
from everlog.errors import EverlogError
from everlog.finding import MACHINE, Examined, Finding, Level
from everlog.settings import Settings, adapters, examine_log, examine_store, resolve, shown

_OURS: Final = frozenset({"dev", "bench"})
_STYLES: Final[Mapping[Level, str]] = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}


def doctor(
    apps: Annotated[
        list[str] | None, typer.Argument(metavar="APP", help="Apps whose stores are looked at too.", show_default=False)
    ] = None,
    log_url: LogUrl = None,
    store_url: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Look at the machine, the disk, the log and stores, and say what to do. Changes nothing. Exits with 1 when there is a problem."""
    settings = settings_from(log_url=log_url, store_url=store_url)
    findings = asyncio.run(_examine(settings, list(dict.fromkeys(apps or [])), SystemClock()))
    if as_json:
        counts = {"problems": _count(findings, Level.PROBLEM), "warnings": _count(findings, Level.WARNING)}
        print_json({"findings": [_shown(one) for one in findings], **counts})
    else:
        _print(findings)
    if _count(findings, Level.PROBLEM):
        raise typer.Exit(FAILED)


async def _examine(settings: Settings, apps: Sequence[str], clock: Clock) -> list[Finding]:
    """Look at everything; what two of them found of one subject is there once."""
    findings = _python()
    url = shown(resolve(settings.log_url))
    log = await _examined("log", url, examine_log(settings, clock=clock))
    findings += log.findings
    for app in apps:
        subject = f"store of {app}"
        store = await _examined(subject, shown(resolve(settings.store_url, app=app)), examine_store(settings, app, clock=clock))
        findings += store.findings
        findings += _belongs(subject, log.log, store.log)
    once: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        once.setdefault((finding.subject, finding.name), finding)
    return list(once.values())


async def _examined(subject: str, url: str, examine: Awaitable[Examined | None]) -> Examined:
    try:
        examined = await examine
    except (EverlogError, OSError) as error:
        return Examined([Finding(subject, "adapter", Level.PROBLEM, str(error), "correct the URL, or give permission")], None)
    if examined is None:
        return Examined([Finding(subject, "adapter", Level.OK, f"{url} can only be looked at by opening it")], None)
    return examined


def _python() -> list[Finding]:
    """Look at what is installed."""
    try:
        loop = Finding(MACHINE, "uvloop", Level.OK, version("uvloop"))
    except PackageNotFoundError:
        loop = Finding(
            MACHINE, "uvloop", Level.OK, "not installed", "asyncio's own loop is used, which is slower: pip install uvloop"
        )
    found = f"logs: {', '.join(adapters('log'))}; stores: {', '.join(adapters('store'))}"
    extras = ", ".join(name if is_there else f"{name} (not installed)" for name, is_there in sorted(_extras().items()))
    return [
        Finding(MACHINE, "Everlog", Level.OK, version("everlog")),
        Finding(
            MACHINE, "Python", Level.OK, f"{platform.python_version()}, {platform.python_implementation()} on {platform.system()}"
        ),
        loop,
        Finding(MACHINE, "adapters", Level.OK, found),
        Finding(MACHINE, "extras", Level.OK, extras or "there are none"),
    ]


def _extras() -> Mapping[str, bool]:
    """Return what `pip install everlog[NAME]` adds, and whether it is there; what developers of Everlog use is left out."""
    found: dict[str, bool] = {}
    for requirement in requires("everlog") or ():
        extra = re.search(r"""extra == ["']([^"']+)""", requirement)
        package = re.match(r"[\w.-]+", requirement)
        if extra is None or package is None or extra[1] in _OURS:
            continue
        found[extra[1]] = found.get(extra[1], True) and _is_installed(package[0])
    return found


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _belongs(subject: str, log: UUID | None, of_store: UUID | None) -> list[Finding]:
    """Compare the log with that of a store's progress, where both are known."""
    if log is None or of_store is None:
        return []
    if log == of_store:
        return [Finding(subject, "log", Level.OK, str(of_store))]
    found = f"its progress belongs to log {of_store}, and this log is {log}"
    advice = "give the log that it was used with (--log-url), or another store (--store-url)"
    return [Finding(subject, "log", Level.PROBLEM, found, advice)]


def _count(findings: Sequence[Finding], level: Level) -> int:
    return sum(finding.level is level for finding in findings)


def _print(findings: Sequence[Finding]) -> None:
    console = screen()
    for subject in dict.fromkeys(finding.subject for finding in findings):
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for finding in findings:
            if finding.subject == subject:
                advice = f"\n→ {printable(finding.advice)}" if finding.advice else ""
                level = Text(f"  {finding.level.value}", style=_STYLES[finding.level])
                grid.add_row(level, finding.name, printable(finding.found) + advice)
        console.print(printable(subject), style="bold", soft_wrap=True)
        console.print(grid)
    problems, warnings = _count(findings, Level.PROBLEM), _count(findings, Level.WARNING)
    counts = [counted(number, noun) for number, noun in ((problems, "problem"), (warnings, "warning")) if number]
    console.print(", ".join(counts) or "nothing is wrong; what is stored was not read: `everlog verify` does that", style="bold")


def _shown(finding: Finding) -> dict[str, Any]:
    return {
        "subject": finding.subject,
        "name": finding.name,
        "level": finding.level.value,
        "found": finding.found,
        "advice": finding.advice,
    }
