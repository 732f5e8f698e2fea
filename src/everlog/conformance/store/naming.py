"""Stored names: what a start remembers, what it refuses, and what retiring forgets."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import msgspec

from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.store.harness import (
    APP,
    LOG,
    MAIL,
    MAIL_STATE,
    OTHER_LOG,
    OTHER_TOPIC,
    SLOT,
    STATE,
    STOCK,
    TOPIC,
    TYPES,
    StoreUnderTest,
    at_work,
    emitted,
    failed,
    number,
    numbers_in_outbox,
    opened,
    progress,
    value_of,
)
from everlog.errors import CommandRefused, LeaseLost, StartRefused, SubscriptionMissing
from everlog.store import AppSpec, Outcome, Put, Registered, Slot, SubscriptionSpec, Unit

_NOTHING_NEW = Registered(LOG, frozenset(), {})


def _handling(*types: str, topic: str = TOPIC) -> AppSpec:
    """Return the app with these types handled by its first subscription."""
    first, second = APP.subscriptions
    merged = {**first.types, topic: list(types)}
    return AppSpec(APP.name, [SubscriptionSpec(first.name, merged, first.states), second])


@case()
async def the_first_start_reports_no_log_and_every_subscription_as_new(harness: StoreUnderTest) -> None:
    store = await harness.open()
    try:
        same(await store.register(APP, log=LOG), Registered(None, frozenset({STOCK, MAIL}), {}), "what it held before")
        same((await store.status()).log, LOG, "the log that it remembers")
    finally:
        await store.aclose()


@case()
async def the_same_start_again_reports_the_log_and_nothing_new(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        same(await store.register(APP, log=LOG), _NOTHING_NEW, "what it held before")


@case()
async def another_log_is_reported_against_the_one_that_is_kept(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        same((await store.register(APP, log=OTHER_LOG)).log, LOG, "the log that it held before")
        same((await store.status()).log, LOG, "the log that it remembers")


@case()
async def an_app_without_a_stored_subscription_is_refused_and_changes_nothing(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        with raises(SubscriptionMissing, MAIL):
            await store.register(AppSpec(APP.name, [APP.subscriptions[0], SubscriptionSpec("new", {}, [])]), log=LOG)
        same(await store.register(APP, log=LOG), _NOTHING_NEW, "what it holds after the refusal")
        same({one.name for one in (await store.status()).subscriptions}, {STOCK, MAIL}, "its subscriptions")


@case()
async def an_app_of_another_name_is_refused_and_changes_nothing(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        with raises(StartRefused, APP.name):
            await store.register(AppSpec("another", [*APP.subscriptions, SubscriptionSpec("new", {}, [])]), log=LOG)
        same({one.name for one in (await store.status()).subscriptions}, {STOCK, MAIL}, "its subscriptions")
        same((await store.status()).app, APP.name, "its app")


@case()
async def a_subscription_that_was_added_is_new_once(harness: StoreUnderTest) -> None:
    more = AppSpec(APP.name, [*APP.subscriptions, SubscriptionSpec("new", TYPES, [])])
    async with opened(harness) as store:
        same((await store.register(more, log=LOG)).new, frozenset({"new"}), "what is new")
        same((await store.register(more, log=LOG)).new, frozenset[str](), "what is new the second time")


def _renamed(name: str = "conformance-reserve") -> AppSpec:
    """Return the app with its first subscription under another name."""
    first, second = APP.subscriptions
    return AppSpec(APP.name, [SubscriptionSpec(name, first.types, first.states, renamed_from=first.name), second])


@case()
async def a_subscription_under_a_new_name_goes_on_with_all_that_it_had(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        joined = await store.join({STOCK: [], MAIL: []}, alive_s=3_600)
        lease = await store.acquire(SLOT)
        assert lease is not None
        unit = Unit(SLOT, "k", joined.version_base + 1, writes={(STATE, '["a"]'): Put(number(7))}, holds=[failed(2)])
        same(list(await store.commit([unit], [lease], [(SLOT, progress(5))])), [Outcome.COMMITTED], "the outcome")
        await store.leave()
        same((await store.register(_renamed(), log=LOG)).new, frozenset[str](), "what is new")
        same((await store.register(_renamed(), log=LOG)).new, frozenset[str](), "what is new the second time")
        found = {one.name: one for one in (await store.status()).subscriptions}
        same(set(found), {"conformance-reserve", MAIL}, "the subscriptions")
        mine = found["conformance-reserve"]
        same((mine.origin, list(mine.progress), mine.held_records), (STOCK, [progress(5)], 1), "where it stands")
        same(found[MAIL].origin, MAIL, "where the ids of the other one come from")
        same(await value_of(store, '["a"]'), 7, "its row")
        same(list(await store.commit([unit], [lease], [])), [Outcome.FENCED], "the outcome of a unit under the old name")
        await store.join({"conformance-reserve": [], MAIL: []}, alive_s=3_600)
        again = await store.acquire(Slot("conformance-reserve", 0))
        assert again is not None
        same([held.key for held in (await store.load(again)).held], ["k"], "the held keys")


@case()
async def a_subscription_at_work_is_not_renamed(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        with raises(StartRefused, STOCK):
            await worker.store.register(_renamed(), log=LOG)
        same({one.name for one in (await worker.store.status()).subscriptions}, {STOCK, MAIL}, "the subscriptions")
        await worker.committed(worker.unit())


@case()
async def ids_come_from_the_first_name_after_a_second_rename_and_in_a_new_store_too(harness: StoreUnderTest) -> None:
    store = await harness.open()
    try:
        await store.register(_renamed(), log=LOG)
        first, second = APP.subscriptions
        later = SubscriptionSpec("conformance-book", first.types, first.states, renamed_from="conformance-reserve")
        await store.register(AppSpec(APP.name, [later, second]), log=LOG)
        found = {one.name: one.origin for one in (await store.status()).subscriptions}
        same(found, {"conformance-book": STOCK, MAIL: MAIL}, "the first names")
    finally:
        await store.aclose()


@case()
async def grown_types_on_a_topic_with_progress_are_reported_until_they_are_accepted(harness: StoreUnderTest) -> None:
    grown = _handling("conformance.placed/1", "conformance.cancelled/1")
    async with opened(harness) as store:
        await store.begin(STOCK, [progress(5)])
        for attempt in ("first", "second"):
            found = await store.register(grown, log=LOG)
            same({k: list(v) for k, v in found.grown.items()}, {STOCK: ["conformance.cancelled/1"]}, f"the {attempt} report")
        found = await store.register(grown, log=LOG, accept=("conformance.cancelled/1",))
        same(
            {k: list(v) for k, v in found.grown.items()}, {STOCK: ["conformance.cancelled/1"]}, "the report of the accepted start"
        )
        same(await store.register(grown, log=LOG), _NOTHING_NEW, "what is new after it was accepted")


@case()
async def a_new_version_of_a_type_that_is_handled_is_no_growth(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        await store.begin(STOCK, [progress(5)])
        for types in (["conformance.placed/1", "conformance.placed/2"], ["conformance.placed/2"], ["conformance.placed/1"]):
            same(await store.register(_handling(*types), log=LOG), _NOTHING_NEW, f"what is new with {types}")
        found = await store.register(_handling("conformance.placed/1", "conformance.placed.late/1"), log=LOG)
        same({k: list(v) for k, v in found.grown.items()}, {STOCK: ["conformance.placed.late/1"]}, "what has grown")


@case()
async def of_several_new_types_those_that_are_accepted_are_remembered(harness: StoreUnderTest) -> None:
    grown = _handling("conformance.placed/1", "conformance.cancelled/1", "conformance.paid/1")
    both = {STOCK: {"conformance.cancelled/1", "conformance.paid/1"}}
    async with opened(harness) as store:
        await store.begin(STOCK, [progress(5)])
        found = await store.register(grown, log=LOG, accept=frozenset({"conformance.paid/1"}))
        same({k: set(v) for k, v in found.grown.items()}, both, "the report of the start that accepts one")
        found = await store.register(grown, log=LOG)
        same({k: set(v) for k, v in found.grown.items()}, {STOCK: {"conformance.cancelled/1"}}, "the next report")


@case()
async def a_new_type_on_a_topic_without_progress_is_no_growth(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        await store.begin(STOCK, [progress(5)])
        same(await store.register(_handling("conformance.paid/1", topic=OTHER_TOPIC), log=LOG), _NOTHING_NEW, "what is new")


@case()
async def a_type_that_the_code_dropped_is_a_growth_when_it_returns(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        await store.begin(STOCK, [progress(5)])
        await store.register(_handling(), log=LOG)
        found = await store.register(APP, log=LOG)
        same({k: list(v) for k, v in found.grown.items()}, {STOCK: ["conformance.placed/1"]}, "what has grown")


@case()
async def begin_sets_progress_only_where_there_is_none(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        await store.begin(STOCK, [progress(5, [2, 3])])
        await store.begin(STOCK, [progress(9), progress(7, partition=1), progress(8, topic=OTHER_TOPIC)])
        found = {one.name: one for one in (await store.status()).subscriptions}[STOCK].progress
        expected = [progress(5, [2, 3]), progress(7, partition=1), progress(8, topic=OTHER_TOPIC)]
        same(sorted(found, key=lambda at: at.where), sorted(expected, key=lambda at: at.where), "the progress")


@case()
async def progress_of_one_subscription_is_not_that_of_another(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        await store.begin(STOCK, [progress(5)])
        await store.begin(MAIL, [progress(6)])
        found = {one.name: list(one.progress) for one in (await store.status()).subscriptions}
        same(found, {STOCK: [progress(5)], MAIL: [progress(6)]}, "the progress")


@case()
async def a_retired_subscription_is_forgotten_and_the_others_are_not(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, Slot(MAIL, 0)) as worker:
        store = worker.store
        await worker.committed(
            worker.writing({'["a"]': Put(number(1))}, holds=[failed(3)], emits=[emitted(1)]),
            worker.unit(slot=Slot(MAIL, 0), writes={(MAIL_STATE, '["a"]'): Put(number(2))}),
            progress=[progress(5)],
        )
        await store.begin(MAIL, [progress(6)])
        await store.leave()
        await store.retire(STOCK)
        (left,) = (await store.status()).subscriptions
        same((left.name, list(left.progress)), (MAIL, [progress(6)]), "what is left")
        same(list(await store.parked()), [], "the held records")
        same(await value_of(store, '["a"]', MAIL_STATE), 2, "the other's state")
        same(await numbers_in_outbox(store), [1], "the outbox: what was published stays published")
        same((await store.register(APP, log=LOG)).new, frozenset({STOCK}), "what is new")
        same(await value_of(store, '["a"]', STATE), None, "its state when it is declared again")


@case()
async def a_lease_of_a_retired_subscription_never_counts_again(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        old = worker.leases[SLOT]
        await store.leave()
        await store.retire(STOCK)
        await store.register(APP, log=LOG)
        await store.join({STOCK: []}, alive_s=60)
        new = await worker.take(SLOT)
        holds(new.epoch > old.epoch, f"expected an epoch above {old.epoch}, found {new.epoch}")
        same(list(await store.commit([worker.unit()], [old], [])), [Outcome.FENCED], "the outcome under the old lease")
        with raises(LeaseLost):
            await store.load(old)
        with raises(LeaseLost):
            await store.load(msgspec.structs.replace(old, member=new.member))


@case()
async def retiring_what_is_not_stored_or_at_work_is_refused(harness: StoreUnderTest) -> None:
    async with at_work(harness) as worker:
        with raises(CommandRefused, "unheard-of"):
            await worker.store.retire("unheard-of")
        with raises(CommandRefused, STOCK):
            await worker.store.retire(STOCK)
        same(await worker.store.register(APP, log=LOG), _NOTHING_NEW, "what it holds after the refusals")
