"""storefront: publishes the catalogue, then the orders, at a chosen speed. A script, not a service: it handles nothing.

Look at `publish_orders`: one call publishes all that is due. When it returns, the orders are on the disk; when it raises, nothing was taken.
SIGTERM ends it between two calls.

    python storefront.py --speed 300 --orders 1000
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Iterable, Sequence
from itertools import islice

from contracts import ArticleListed, OrderPlaced
from everlog import App, Client
from files import read_articles, read_orders
from world import endless, with_bursts

TICK_S = 0.05

storefront = App("storefront")


async def publish_catalogue(client: Client, articles: Sequence[ArticleListed]) -> None:
    for start in range(0, len(articles), 1_000):
        await client.publish(*articles[start : start + 1_000])


async def publish_orders(client: Client, orders: Iterable[OrderPlaced], speed: float, stop: asyncio.Event) -> None:
    left = iter(orders)
    start_s = asyncio.get_running_loop().time()
    sent = 0
    while not stop.is_set():
        await asyncio.sleep(TICK_S)
        due = int((asyncio.get_running_loop().time() - start_s) * speed)
        some = list(islice(left, min(due - sent, 1_000)))
        if some:
            await client.publish(*some)
            sent += len(some)
        elif due > sent:
            return


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Publish the catalogue and the orders of the shop.")
    parser.add_argument("--orders", type=int, help="how many real orders; all by default")
    parser.add_argument("--bursts", type=int, default=20, help="how many fraud bursts of ours go among them")
    parser.add_argument("--speed", type=float, default=300.0, help="orders a second")
    parser.add_argument("--endless", action="store_true", help="begin again after the last order, some weeks later")
    parser.add_argument("--without", default="", metavar="SKU", help="an article that is left out of the catalogue")
    return parser.parse_args()


async def main() -> None:
    options = arguments()
    articles = [article for article in read_articles() if article.sku != options.without]
    orders = with_bursts(read_orders(options.orders), options.bursts)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with storefront.connect() as client:
        await publish_catalogue(client, articles)
        await publish_orders(client, endless(orders) if options.endless else orders, options.speed, stop)


if __name__ == "__main__":
    asyncio.run(main())
