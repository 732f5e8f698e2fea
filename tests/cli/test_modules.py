"""Modules of users: found, or refused with what is wrong and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlog.cli.modules import apps_of, chosen, contracts_of, load
from everlog.errors import CommandRefused


def test_an_app_is_found_by_its_name_in_the_module(shop: Path) -> None:
    assert [app.name for app in apps_of(["shop:billing", "shop:loyalty"])] == ["billing", "loyalty"]


def test_a_module_alone_is_enough_where_it_has_one_app(shop: Path) -> None:
    (shop / "alone.py").write_text("from shop import loyalty\nsame = loyalty\n")
    assert [app.name for app in apps_of(["alone"])] == ["loyalty"]


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        (None, "nothing", "there is no module 'nothing' in "),
        (None, "nothing.inside:app", "there is no module 'nothing.inside' in "),
        (None, "shop.py", "write shop, without .py"),
        (None, "shop", "expected one App in module 'shop', found shop:billing, shop:loyalty: write MODULE:APP"),
        (None, "shop:biling", "module 'shop' has no 'biling': its apps are shop:billing, shop:loyalty"),
        (None, "shop:orders", "shop:orders is a Topic and no App"),
        ("x = 1 / 0", "broken:app", "ZeroDivisionError: division by zero (broken.py:1)"),
        ("import nonsense_", "broken:app", "ModuleNotFoundError: No module named 'nonsense_' (broken.py:1)"),
        ("def f(:", "broken:app", "SyntaxError: invalid syntax (broken.py:1)"),
        ("\nimport sys\nsys.exit(3)", "broken:app", "SystemExit: 3 (broken.py:3)"),
        ("from everlog import Topic\nTopic('a b', key=None)", "broken:app", "found 'a b' (broken.py:2)"),
        ("", "broken", "expected one App in module 'broken', found none"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_place(shop: Path, text: str | None, reference: str, message: str) -> None:
    if text is not None:
        (shop / "broken.py").write_text(text)
    with pytest.raises(CommandRefused) as refused:
        apps_of([reference])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_app_given_twice_is_refused(shop: Path) -> None:
    with pytest.raises(CommandRefused, match="given twice"):
        apps_of(["shop:billing", "shop:billing"])


def test_contracts_are_found_through_topics_and_through_classes(shop: Path) -> None:
    assert sorted(contracts_of(load("shop"))) == ["shop.note_taken/1", "shop.order_placed/1"]
    (shop / "other.py").write_text("from shop import OrderPlaced\n")
    assert sorted(contracts_of(load("other"))) == ["shop.order_placed/1"]


def test_a_module_without_types_is_refused(shop: Path) -> None:
    (shop / "empty.py").touch()
    with pytest.raises(CommandRefused, match="declares no event type"):
        contracts_of(load("empty"))


def test_a_name_that_two_topics_give_is_refused(shop: Path) -> None:
    (shop / "twice.py").write_text(
        "from everlog import Event, Topic\n"
        "a, b = Topic('a', key=None), Topic('b', key=None)\n"
        "@a.event('x/1')\nclass A(Event): pass\n"
        "@b.event('x/1')\nclass B(Event): pass\n"
    )
    with pytest.raises(CommandRefused, match="'x/1' is a type of topic 'a' and of 'b'"):
        contracts_of(load("twice"))


def test_an_unknown_name_is_answered_with_the_closest() -> None:
    with pytest.raises(CommandRefused, match=r"did you mean shop\.order_placed/1"):
        chosen("shop.order_plced", ["shop.order_placed/1", "x/1"], what="event type", where="shop")
    with pytest.raises(CommandRefused, match="it has x/1"):
        chosen("quite different", ["x/1"], what="event type", where="shop")
