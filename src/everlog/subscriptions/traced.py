"""A subscription whose handlers are called in spans: made before it runs, so that one without spans pays nothing for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import msgspec

from everlog.observe.tracing import Tracing
from everlog.subscriptions.declaration import SubscriptionDeclaration
from everlog.subscriptions.handler import Handler
from everlog.subscriptions.tx import Outgoing, Tx


def traced(declaration: SubscriptionDeclaration, tracing: Tracing) -> SubscriptionDeclaration:
    """Return the same subscription with handlers that are called in spans, and whose events carry these."""
    group = f"{declaration.app}/{declaration.name}"
    made: dict[int, Handler] = {}
    for branch in declaration.branches.values():
        handler = branch.handler
        if id(handler) not in made:  # a handler of several types stays one
            made[id(handler)] = _traced(handler, group, tracing)
    branches = {
        name: msgspec.structs.replace(branch, handler=made[id(branch.handler)]) for name, branch in declaration.branches.items()
    }
    return msgspec.structs.replace(declaration, branches=branches)


def _traced(handler: Handler, group: str, tracing: Tracing) -> Handler:
    """Return a handler that takes a `Tx`, since that knows the record, whether its function does or not."""
    function, takes_tx, name, is_batch = handler.function, handler.takes_tx, handler.name, handler.batching is not None

    def span(tx: Tx[Any]) -> AbstractContextManager[Mapping[str, str]]:
        records = [record.stored for record in tx.records] if is_batch else [tx.record.stored]
        return tracing.handling(records, handler=name, group=group, is_replayed=tx.replaying)

    async def call(event: Any, tx: Tx[Any]) -> object:
        with span(tx) as headers:
            result = await (function(event, tx) if takes_tx else function(event))
            return _carrying(tx, result, headers)

    def call_plain(event: Any, tx: Tx[Any]) -> object:
        with span(tx) as headers:
            result = function(event, tx) if takes_tx else function(event)
            return _carrying(tx, result, headers)

    chosen = call_plain if handler.is_plain else call
    chosen.__qualname__ = name
    return msgspec.structs.replace(handler, function=chosen, takes_tx=True)


def _carrying(tx: Tx[Any], result: object, headers: Mapping[str, str]) -> object:
    """Give what a handler publishes the headers of its span, beside its own; return what it has returned that is no event."""
    tx.outgoing[:] = [msgspec.structs.replace(out, headers={**headers, **(out.headers or {})}) for out in tx.outgoing]
    if result is None or isinstance(result, str | bytes | int | float | dict | set):  # which whoever makes the unit refuses
        return cast("object", result)
    events = cast("Sequence[Any]", result if isinstance(result, list | tuple) else (result,))
    if events:
        tx.outgoing.append(Outgoing(events, headers, None))
    return None
