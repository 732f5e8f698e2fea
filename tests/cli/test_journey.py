"""The way of a user through the command line, with processes of their own all along."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

from tests.cli.shop import EVERLOG, PATIENCE_S, Start, orders


def everlog(*arguments: str, stdin: str = "") -> str:
    """Run a command to its end and return its output."""
    done = subprocess.run([EVERLOG, *arguments], input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_publish_over_a_parked_key_to_a_verified_log(shop: Path, start: Start) -> None:
    (shop / "orders.jsonl").write_text(orders("ada", "poison", "bob", "poison"))
    assert (
        everlog("publish", "shop", "shop.order_placed/1", "orders.jsonl", "--producer", "orders")
        == "published 4 events to shop.orders\n"
    )

    worker = start("run", "shop:billing", "shop:loyalty")
    worker.wait_for("key 'poison' is parked after 2 attempts: RuntimeError: no money")
    assert everlog("parked", "list", "billing").splitlines()[1].split()[:2] == ["poison", "parked"]

    (shop / "mended").touch()
    assert "handled: poison" in everlog("parked", "redrive", "billing", "--all", "--wait-s", "30")
    assert worker.end(signal.SIGTERM) == 0

    status = {one["name"]: one for one in json.loads(everlog("status", "--json", "--max-lag", "0"))["subscriptions"]}
    assert {name: (one["lag"], one["held_records"]) for name, one in status.items()} == {
        "billing/billing": (0, 0),
        "loyalty/loyalty": (0, 0),
    }
    assert "nothing is wrong" in everlog("verify", "--contracts", "shop")
