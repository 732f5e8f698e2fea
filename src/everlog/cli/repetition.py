"""What a replay or a rewind would do, in words, and the app's part in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from everlog.cli.terminal import counted, local_time
from everlog.store import Section
from everlog.subscriptions.declaration import SubscriptionDeclaration
from everlog.subscriptions.repeating import Repetition
from everlog.subscriptions.reset import ResetTx


def emptying(declaration: SubscriptionDeclaration) -> Callable[[Section], Awaitable[None]] | None:
    """Return what empties the app's own tables; ``None`` where it has no reset hook."""
    hook = declaration.reset
    if hook is None:
        return None

    async def empty(section: Section) -> None:
        await hook(ResetTx(section))

    return empty


def plan_of(declaration: SubscriptionDeclaration, plan: Repetition, workers: int) -> Iterator[str]:
    """Yield what would be done."""
    name, again = declaration.name, plan.again
    since = "" if plan.oldest_us is None else f", the oldest of {local_time(plan.oldest_us)}"
    yield f"subscription {name}: {counted(plan.events, 'event')} that it has passed will be handled again{since}"
    if plan.gone:
        yield f"{counted(plan.gone, 'event')} of its past were deleted by retention, and are not handled"
    if plan.grown:
        yield f"among them those of {', '.join(plan.grown)}, which it has passed by; what is published for these is published for the first time"
    if not again.rebuilds:
        yield "state stays as it is, so that what its handlers add is added once more"
        yield "EVERYTHING that its handlers publish for these events is published again, under the same ids"
    else:
        if not declaration.states:
            yield "it has no state"
        elif again.keep_state:
            yield f"its state ({', '.join(declaration.states)}) stays as it is"
        else:
            yield f"its state ({', '.join(declaration.states)}) begins empty, and is rebuilt; until then others read it as far as it is"
        yield f"what its handlers published for {'the others' if plan.grown else 'them'} is not published again"
        if declaration.reset is not None:
            yield "its reset hook empties the tables that its handlers fill with tx.sql, in the same transaction"
        else:
            yield "tables that its handlers fill with tx.sql stay as they are: a reset hook (@app.reset) would empty them"
    yield "mail, payments and calls that handlers make are made again, unless they look at tx.replaying or use tx.idempotency_key"
    if plan.stood.held_records:
        yield f"of the {counted(plan.stood.held_records, 'event')} that it holds, those behind the start are handled again, and published then"
    yield (
        f"{counted(workers, 'worker')} work on it, and what is in their hands is handled anew"
        if workers
        else "no worker is running"
    )
