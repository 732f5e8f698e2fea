"""`everlog retire`: forgetting a subscription."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.cli.shop import Cli, Start, on_terminal


def test_a_subscription_at_work_is_not_retired_and_a_stopped_one_is(shop: Path, cli: Cli, start: Start) -> None:
    worker = start("run", "shop:billing")
    worker.wait_for("is running")
    refused = cli("retire", "billing", "billing", "--yes")
    assert refused.exit_code == 1
    assert "stop them first" in refused.stderr
    worker.end(signal.SIGTERM)
    asked = on_terminal(["retire", "billing", "billing"], columns=120, typed="n\n")
    assert any("Forget progress, state of subscription 'billing' of app 'billing' for ever?" in line for line in asked)
    unasked = cli("retire", "billing", "billing", stdin="y\n")
    assert (unasked.exit_code, "--yes" in unasked.stderr) == (1, True)
    answered = on_terminal(["retire", "billing", "billing"], columns=120, typed="y\n")
    assert answered[-1].endswith("retired subscription 'billing' of app 'billing'")
    again = cli("retire", "billing", "billing", "--yes")
    assert again.exit_code == 1
    assert "there is no subscription 'billing'" in again.stderr


def test_what_the_code_dropped_starts_again_once_it_is_retired(shop: Path, cli: Cli, start: Start) -> None:
    text = (shop / "shop.py").read_text()
    (shop / "older.py").write_text(
        text + "\n@billing.subscription('mails').on(OrderPlaced)\nasync def mail(order: OrderPlaced) -> None: ...\n"
    )
    worker = start("run", "older:billing")
    worker.wait_for("is running")
    worker.end(signal.SIGTERM)
    refused = start("run", "shop:billing")
    assert refused.end() == 4
    assert "`everlog retire billing mails`" in refused.text
    assert cli("retire", "billing", "mails", "--yes").exit_code == 0
    start("run", "shop:billing").wait_for("is running")
