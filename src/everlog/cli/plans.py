"""What a restore means, in sentences: the part of `everlog restore` that only looks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from everlog.cli.terminal import counted, local_time
from everlog.log import Log
from everlog.position import BEGINNING, Position
from everlog.subscriptions.mending import Plan
from everlog.subscriptions.report import progress_topic, read_reports

_MOST_PLACES: Final = 3


def plan_lines(app: str, plan: Plan) -> Iterator[str]:
    """Yield what was found, and what going on means."""
    fit = plan.fit
    if not plan.is_needed:
        yield f"the store of app {app!r} and the log fit together"
    if fit.replaced is not None:
        yield f"app {app!r} has worked with store {fit.replaced}, and this is {'a new one' if fit.is_new else 'another one'}"
    if fit.store_is_old:
        since = sum(one.log - one.store for one in fit.unknown)
        yield f"the store is older than the log, which holds {counted(since, 'event')} of its handlers that it does not know"
    if fit.reported:
        since = sum(one.reported - one.through for one in fit.reported)
        yield f"the store is older than the log, which says that the app has handled {counted(since, 'event')} more"
    if fit.log_is_old:
        yield "the log is older than the store"
    for subscription in dict.fromkeys(one.subscription for one in fit.beyond):
        back = [one for one in fit.beyond if one.subscription == subscription]
        places = [f"{one.where.topic}/{one.where.partition}: {one.through} → {one.ends}" for one in back]
        shown = ", ".join(places[:_MOST_PLACES]) + (
            f" and {len(places) - _MOST_PLACES:,} more" if len(places) > _MOST_PLACES else ""
        )
        yield (
            f"subscription {subscription}: its progress goes back in {counted(len(back), 'partition')} ({shown}); what it handled "
            f"beyond stays in its state, and what stands there now is handled"
        )
    for lost in fit.lost:
        where = f"{lost.where.topic}/{lost.where.partition}"
        yield f"{counted(lost.store - lost.log, 'event')} of its handlers in {where} are lost: neither the log nor the store has them any more"
    yield from _going_on(plan)


def _going_on(plan: Plan) -> Iterator[str]:
    """Yield what the app will do."""
    fit = plan.fit
    for again in plan.again:
        if fit.is_new and again.subscription not in dict(plan.begins):
            yield f"subscription {again.subscription}: begins where its `Delivery(start=…)` says"
            continue
        yield f"subscription {again.subscription}: {counted(again.events, 'event')} will be handled, some of them perhaps again"
        if again.gone:
            yield f"subscription {again.subscription}: {counted(again.gone, 'event')} behind its progress were deleted by retention, and are not handled"
    if plan.is_needed:
        yield (
            f"of what its handlers publish, {counted(len(plan.in_log), 'event')} in the log are not sent again, and "
            f"{counted(plan.waiting, 'event')} in the outbox will be sent"
        )
        if plan.forgotten:
            yield f"{counted(plan.forgotten, 'event')} that they published were deleted by retention: when they are published again, they are sent"


async def lost_events(log: Log, copy: Log) -> list[str]:
    """Return what a log holds that its backup does not, a line each."""
    lines: list[str] = []
    known = {topic.name for topic in await copy.topics()} if log.identity == copy.identity else set[str]()
    for topic in await log.topics():
        if topic.name == progress_topic.name:
            continue
        heads = (await log.head(topic.name)).offsets
        copied = await copy.head(topic.name) if topic.name in known else Position(copy.identity, {})
        after = {where.partition: min(copied.offsets.get(where, BEGINNING), head) for where, head in heads.items()}
        backlog = await log.backlog(topic.name, after)
        if backlog.oldest_us is not None:
            lines.append(f"{topic.name}: {counted(backlog.count, 'event')} since {local_time(backlog.oldest_us)} will be gone")
    apps = sorted({report.app for report, _ in (await read_reports(log)).values()})
    if apps:
        lines.append(f"apps that work with it: {', '.join(apps)}")
    return lines or ["the log holds nothing that its backup does not"]
