"""`everlog run`: apps at work in this process, or in several that it supervises."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.table import Table

from everlog.cli.crew import Crew
from everlog.cli.holding import standing_warnings
from everlog.cli.modules import apps_of
from everlog.cli.notify import ServiceManager
from everlog.cli.numbers import Teller
from everlog.cli.options import LogUrl, NoCreateTopics, StoreUrl, settings_from
from everlog.cli.pulse import Pulse
from everlog.cli.reload import check_installed
from everlog.cli.supervisor import Supervisor
from everlog.cli.terminal import counted, printable, screen
from everlog.cli.worker import Work
from everlog.clock import SystemClock
from everlog.errors import CommandRefused, FeatureMissing
from everlog.observe import Meters
from everlog.position import BEGINNING
from everlog.runtime import Ready, run_apps
from everlog.settings import Settings
from everlog.store import Progress, SubscriptionStatus
from everlog.subscriptions.declaration import AppDeclaration
from everlog.subscriptions.worker import IGNORED_S

SWITCH_INTERVAL_S: Final = 50e-6
"""Python's own 5 ms make one publish wait 7 to 35 ms behind a busy event loop: the writer's thread waits for its turn several times."""

_LAST_WORDS_S: Final = 1.0
"""How long a worker that ends waits for a supervisor to hear what it has counted."""


def run(  # noqa: PLR0913 one per flag
    context: typer.Context,
    apps: Annotated[
        list[str],
        typer.Argument(metavar="MODULE[:APP]", help="Apps; MODULE alone where it has exactly one.", show_default=False),
    ],
    log_url: LogUrl = None,
    store_url: StoreUrl = None,
    lease_s: Annotated[
        float | None,
        typer.Option("--lease-s", metavar="SECONDS", help="Silence after which others take over.", show_default=False),
    ] = None,
    grace_s: Annotated[
        float | None, typer.Option("--grace-s", metavar="SECONDS", help="How long a stop waits for handlers.", show_default=False)
    ] = None,
    no_create_topics: NoCreateTopics = False,
    new_types: Annotated[
        Literal["refuse", "now"] | None,
        typer.Option("--new-types", help="What to do with the past of a type that is new to a subscription.", show_default=False),
    ] = None,
    accept_new_store: Annotated[
        bool, typer.Option("--accept-new-store", help="Start with an empty store: everything is handled again.")
    ] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option("--log-level", metavar="LEVEL", help="Logged to stderr: debug, info, warning or error."),
    ] = "info",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="N",
            min=0,
            max=65_535,
            help="Serve /metrics, /healthz and /readyz there.",
            show_default=False,
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option("--metrics-host", metavar="HOST", help="The address of that; 127.0.0.1.", show_default=False),
    ] = None,
    no_tracing: Annotated[
        bool, typer.Option("--no-tracing", help="Make no OpenTelemetry spans, though a tracer provider is set.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option("--workers", metavar="N", min=1, help="Run them in N processes, and start anew what ends or hangs."),
    ] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start anew when a Python file in this folder changes. For development.")
    ] = False,
) -> None:
    """Run apps until SIGTERM or SIGINT; the second signal ends them at once."""
    signal.signal(signal.SIGTERM, _end_before_work)  # until the apps run and stop in order
    pulse, teller = Pulse.of(os.environ, SystemClock()), Teller.of(os.environ)
    given = settings_from(
        log_url=log_url,
        store_url=store_url,
        lease_s=lease_s,
        grace_s=grace_s,
        new_types=new_types,
        no_create_topics=no_create_topics,
        accept_new_store=accept_new_store,
    )
    settings = dataclasses.replace(
        given,
        metrics_port=given.metrics_port if metrics_port is None else metrics_port,
        metrics_host=metrics_host or given.metrics_host,
        tracing=given.tracing and not no_tracing,
    )
    _log_to_stderr(log_level, worker=None if pulse is None else pulse.number)
    if pulse is not None:
        pulse.attend(lease_s=settings.lease_s, grace_s=settings.grace_s)
    elif workers > 1 or reload:
        raise typer.Exit(_supervise(context, settings, workers, reload=reload))
    try:
        declarations = [app.declaration() for app in apps_of(apps)]
    except CommandRefused as error:
        if pulse is None:
            raise
        raise typer.BadParameter(str(error), param_hint="MODULE[:APP]") from error  # to start the worker again would not help
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Not closed: that would wait for threads of handlers, which may never end. The process ends right behind it (`leave`).
    runner = asyncio.Runner(loop_factory=_loop_factory())
    runner.run(_work(declarations, settings, pulse, teller))
    if pulse is None:
        _say_stopped()


def _supervise(context: typer.Context, settings: Settings, workers: int, *, reload: bool) -> int:
    """Keep worker processes at work, and return the exit code."""
    if reload:
        check_installed()
    if workers > 1:
        _check_shared(settings)
    urls = {"EVERLOG_LOG_URL": settings.log_url, "EVERLOG_STORE_URL": settings.store_url}  # not as flags: `ps` shows these
    work = Work(_worker_command(context), settings.lease_s, settings.grace_s, urls)

    async def supervise() -> int:
        watched, port = Path.cwd() if reload else None, settings.metrics_port
        crew = None if port is None else Crew()
        supervisor = Supervisor(work, workers, watched=watched, manager=ServiceManager(os.environ), crew=crew)
        if port is None or crew is None:
            return await supervisor.run()
        from everlog.observe.endpoint import Endpoint  # with an HTTP server, which few commands need

        with closing(Endpoint(settings.metrics_host, port, crew.snapshot, supervisor.health)):
            return await supervisor.run()

    code = asyncio.run(supervise())
    if code == 0:
        _say_stopped()
    return code


def _check_shared(settings: Settings) -> None:
    """Refuse what each process would have for itself.

    Raises:
        FeatureMissing: The log or the store lives in one process.
    """
    for what, url in (("log", settings.log_url), ("store", settings.store_url)):
        if url.startswith(("memory:", "sqlite::memory:")):
            raise FeatureMissing(
                f"a {what} for several processes", adapter=repr(url), instead=f"use --workers 1, or another --{what}-url"
            )


_OF_THE_SUPERVISOR = frozenset({"apps", "workers", "reload", "metrics_port", "metrics_host", "log_url", "store_url"})


def _worker_command(context: typer.Context) -> list[str]:
    """Return what starts one worker: the same command without what makes it a supervisor. What the environment says, it inherits."""
    # -P: the current folder is on the path for the user's modules, and not before ours. -B: two versions of a file that are written within a
    # second, of one size, are one to the cache of compiled files.
    words = [sys.executable, "-P", "-m", "everlog"]
    if context.params["reload"]:
        words.insert(1, "-B")
    if context.parent is not None and context.parent.params.get("is_debug"):
        words.append("--debug")
    words.append("run")
    for parameter in context.command.params:
        name, value = parameter.name, context.params[str(parameter.name)]
        if name in _OF_THE_SUPERVISOR or value is None or value is False:
            continue
        words.append(parameter.opts[0] if value is True else f"{parameter.opts[0]}={value}")
    return [*words, "--", *context.params["apps"]]


async def _work(declarations: Sequence[AppDeclaration], settings: Settings, pulse: Pulse | None, teller: Teller | None) -> None:
    """Run the apps, and tell whoever watches over this process that they run, that the event loop turns, and what they count."""
    if pulse is not None:  # its supervisor has the port
        settings = dataclasses.replace(settings, metrics_port=None)
    meters = None if teller is None else Meters()
    manager = ServiceManager(os.environ if pulse is None else {})  # a worker's supervisor speaks for it
    to_come = len(declarations)

    def on_ready(ready: Ready) -> None:
        nonlocal to_come
        to_come -= 1
        if pulse is None or pulse.introduces:
            _show(ready)
        if not to_come:
            manager.ready()
            if pulse is not None:
                pulse.running()

    beside = [asyncio.create_task(manager.keep_watchdog())]
    if pulse is not None:
        limits = [subscription.delivery.time_limit_s for app in declarations for subscription in app.subscriptions]
        # Behind the watchdog, which ends such a process too, and leaves a note of what blocks it.
        beside.append(asyncio.create_task(pulse.turn(max(limits) + 2 * IGNORED_S)))
    if teller is not None and meters is not None:
        beside.append(asyncio.create_task(teller.keep_telling(meters)))
    try:
        await run_apps(declarations, settings, on_ready=on_ready, second_signal_ends=pulse is None, meters=meters)
    finally:
        for task in beside:
            task.cancel()
        if teller is not None and meters is not None:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await teller.tell(meters)


def _say_stopped() -> None:
    with suppress(OSError):
        screen().print("stopped")


def _end_before_work(number: int, frame: object) -> None:  # noqa: ARG001 what a signal handler is given
    """End with 0: a stop that comes while modules are still imported stops nothing."""
    os._exit(0)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop; ``None``, asyncio's own, where it is not installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _show(ready: Ready) -> None:
    """Print what an app works with, and where it stands."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("  log", ready.log_url)
    grid.add_row("  store", ready.store_url)
    for subscription in ready.status.subscriptions:
        waiting = ready.waiting.get(subscription.name, 0)
        behind = f"\n{counted(waiting, 'event')} wait{'s' if waiting == 1 else ''}" if waiting else ""
        grid.add_row(f"  {subscription.name}", standing(subscription) + behind)
    if ready.status.outbox:
        refused = f", {ready.status.outbox_parked:,} of them refused by the log" if ready.status.outbox_parked else ""
        grid.add_row("  outbox", f"{counted(ready.status.outbox, 'event')} to send{refused}")
    console = screen()
    with suppress(OSError):  # nobody reads it; the app works on
        console.print(f"{ready.app} is running", style="bold")
        console.print(grid)
        for subscription in ready.status.subscriptions:
            for line in standing_warnings(ready.app, subscription):
                console.print(f"  {line}", style="red", soft_wrap=True)


def standing(subscription: SubscriptionStatus) -> str:
    """Say where a subscription stands: the offsets that it has handled, a line per topic, and what it holds back."""
    by_topic: dict[str, list[Progress]] = {}
    for progress in subscription.progress:
        by_topic.setdefault(progress.where.topic, []).append(progress)
    lines = [f"{topic}: {_through(parts)}" for topic, parts in by_topic.items()]
    if subscription.held_records:
        blocked, parked = subscription.blocked_keys, subscription.parked_keys
        lines.append(f"{counted(blocked, 'key')} blocked, {parked:,} parked, {counted(subscription.held_records, 'event')} held")
    return "\n".join(lines)


def _through(parts: Sequence[Progress]) -> str:
    offsets = [progress.through for progress in parts]
    if max(offsets) == BEGINNING:
        return "from the first event on"
    partitions = counted(len(parts), "partition")
    if min(offsets) == BEGINNING:
        return f"handled up to offset {max(offsets):,}, in some of {partitions} nothing yet"
    return (
        f"handled up to offset {min(offsets):,} … {max(offsets):,} in {partitions}"
        if len(parts) > 1
        else f"handled up to offset {offsets[0]:,}"
    )


class _OneLine(logging.Formatter):
    """A line for each message, whatever it holds."""

    def format(self, record: logging.LogRecord) -> str:
        return " ⏎ ".join([printable(line) for line in super().format(record).splitlines()])


def _log_to_stderr(level: str, *, worker: int | None) -> None:
    """Let `everlog` log to stderr, unless the environment has given it, or the root logger, a handler already."""
    who = "" if worker is None else f"worker {worker}: "
    logger = logging.getLogger("everlog")
    logger.setLevel(level.upper())
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLine(f"%(asctime)s %(levelname)s {who}%(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
