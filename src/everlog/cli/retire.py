"""`everlog retire`: forgetting a subscription that the code no longer has."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from everlog.cli.modules import chosen
from everlog.cli.options import LogUrl, StoreUrl, Yes, confirm, existing_store, settings_from
from everlog.cli.terminal import counted, screen
from everlog.clock import SystemClock
from everlog.runtime import opened_log
from everlog.settings import Settings
from everlog.store import SubscriptionStatus
from everlog.subscriptions.report import publish_retired


def retire(
    app: Annotated[str, typer.Argument(metavar="APP", help="The app's name.", show_default=False)],
    subscription: Annotated[str, typer.Argument(metavar="SUBSCRIPTION", help="Its stored name.", show_default=False)],
    log_url: LogUrl = None,
    store_url: StoreUrl = None,
    is_sure: Yes = False,
) -> None:
    """Forget a subscription: its progress, its state, its held events. Its workers must be stopped."""
    settings = settings_from(log_url=log_url, store_url=store_url)
    stored = asyncio.run(_stored(settings, app, subscription))
    held = f" and {counted(stored.held_records, 'held event')}" if stored.held_records else ""
    confirm(f"Forget progress, state{held} of subscription {subscription!r} of app {app!r} for ever?", is_sure=is_sure)
    asyncio.run(_retire(settings, app, subscription))
    screen().print(f"retired subscription {subscription!r} of app {app!r}", soft_wrap=True)


async def _stored(settings: Settings, app: str, subscription: str) -> SubscriptionStatus:
    async with existing_store(settings, app) as store:
        stored = {one.name: one for one in (await store.status()).subscriptions}
        return stored[chosen(subscription, list(stored), what="subscription", where=f"the store of app {app!r}")]


async def _retire(settings: Settings, app: str, subscription: str) -> None:
    clock = SystemClock()
    async with existing_store(settings, app) as store, opened_log(settings, clock) as log:
        await store.retire(subscription)
        await publish_retired(log, app, subscription, clock.wall_us())
