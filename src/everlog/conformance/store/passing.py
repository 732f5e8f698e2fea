"""What is passed over, and the bound on what may be held."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

from everlog.conformance.cases import case, same
from everlog.conformance.store.harness import (
    MAIL,
    SLOT,
    STATE,
    STOCK,
    StoreUnderTest,
    Worker,
    at_work,
    behind,
    failed,
    finished,
    held_offsets,
    number,
    progress,
    stored,
    value_of,
)
from everlog.store import Hold, Outcome, Put, Room, Skip, Skipped, Slot

_MAIL_SLOT = Slot(MAIL, 0)
_WIDE = Room(records=1_000, size_bytes=1 << 30)


def _skip(offset: int, key: str = "k") -> Skip:
    return Skip(key, stored(offset, key), f"ValueError: {offset}")


async def _skipped(worker: Worker, subscription: str | None = None, *, after: int = 0, limit: int = 100) -> list[int]:
    return [one.record.offset for one in await worker.store.skipped(subscription, after=after, limit=limit)]


@case()
async def what_is_passed_over_comes_back_as_it_was_given(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.unit(skips=[_skip(3)], finishes=finished(3)))
        (found,) = await worker.store.skipped()
        expected = Skipped(found.id, STOCK, "k", stored(3, "k"), "ValueError: 3", harness.clock.wall_us())
        same(found, expected, "what was passed over")


@case()
async def of_a_unit_that_is_not_applied_nothing_is_passed_over(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        late = worker.unit(skips=[_skip(1)], reads={(STATE, '["a"]'): 7})
        same(
            await worker.commit(late, worker.unit(slot=_MAIL_SLOT, skips=[_skip(2)])),
            [Outcome.CONFLICT, Outcome.FENCED],
            "the outcomes",
        )
        same(await _skipped(worker), [], "what was passed over")


@case()
async def what_was_passed_over_is_listed_in_pages_by_subscription(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, _MAIL_SLOT) as worker:
        await worker.committed(
            worker.unit(skips=[_skip(1), _skip(2)]),
            worker.unit(slot=_MAIL_SLOT, skips=[_skip(3)]),
            worker.unit(skips=[_skip(4)]),
        )
        same(await _skipped(worker), [1, 2, 3, 4], "all of it")
        same(await _skipped(worker, STOCK), [1, 2, 4], "that of one subscription")
        ids = [one.id for one in await worker.store.skipped()]
        same(ids, sorted(set(ids)), "the ids")
        same(await _skipped(worker, STOCK, after=ids[0], limit=1), [2], "a page")
        same(await _skipped(worker, after=ids[-1]), [], "the page behind the last")
        same(await _skipped(worker, "unheard-of"), [], "that of nothing")


@case()
async def what_was_passed_over_is_forgotten_up_to_an_id(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, _MAIL_SLOT) as worker:
        await worker.committed(worker.unit(skips=[_skip(1), _skip(2)]), worker.unit(slot=_MAIL_SLOT, skips=[_skip(3), _skip(4)]))
        ids = [one.id for one in await worker.store.skipped()]
        same(await worker.store.forget_skipped(STOCK, through=ids[2]), 2, "how many")
        same(await _skipped(worker), [3, 4], "what is left")
        same(await worker.store.forget_skipped(None, through=ids[2]), 1, "how many of any subscription")
        same(await worker.store.forget_skipped(None, through=ids[2]), 0, "how many the second time")
        same(await _skipped(worker), [4], "what is left")
        await worker.committed(worker.unit(skips=[_skip(5)]))
        same([one.id > ids[3] for one in await worker.store.skipped(STOCK)], [True], "whether ids go on")


@case()
async def a_record_that_a_request_skips_is_on_the_list(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.unit(holds=[failed(1), behind(2)]))
        await worker.store.request(STOCK, "k", "skip")
        (asked,) = await worker.store.requests([SLOT])
        await worker.store.answer(worker.leases[SLOT], asked)
        (found,) = await worker.store.skipped(STOCK)
        same((found.key, found.record, found.error), ("k", stored(1, "k"), "ValueError: no"), "what was passed over")


@case()
async def a_request_can_ask_for_a_type_and_for_an_error(harness: StoreUnderTest) -> None:
    other = Hold("c", stored(3, "c"), failed(3).cause, 1, "KeyError: 100%_of_it", "", None)
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.unit(holds=[failed(1, "a"), behind(2, "a"), failed(4, "b", next_attempt_us=1), other]))
        ask = worker.store.request
        same(await ask(STOCK, None, "redrive", type="conformance.paid/1"), 0, "the keys of a type that is not there")
        same(await ask(STOCK, None, "redrive", error="100%_"), 1, "the keys with an error, whose text is no pattern")
        same(await ask(STOCK, None, "redrive", error="keyerror"), 0, "the keys with the text in other letters")
        same(await ask(STOCK, "a", "redrive", error="KeyError"), 0, "a key whose first record failed otherwise")
        same([one.key for one in await worker.store.requests([SLOT])], ["c"], "the requests")
        same(await ask(STOCK, None, "redrive", type="conformance.placed/1", error="Error"), 2, "the keys with both")
        same({one.key for one in await worker.store.requests([SLOT])}, {"a", "c"}, "the requests")


@case()
async def a_unit_whose_copies_have_no_room_is_not_applied(harness: StoreUnderTest) -> None:
    room = Room(records=2, size_bytes=1 << 20)
    async with at_work(harness, SLOT) as worker:
        fitting = worker.unit(holds=[failed(1, "a"), behind(2, "a")], finishes=finished(1, 2), room=room)
        full = worker.unit("b", holds=[failed(3, "b")], finishes=finished(3), room=room)
        later = worker.writing({'["b"]': Put(number(1))}, "b", finishes=finished(4))
        found = await worker.commit(fitting, full, later, progress=[progress(4)])
        same(found, [Outcome.COMMITTED, Outcome.FULL, Outcome.DROPPED], "the outcomes")
        same([await held_offsets(worker.store, key) for key in "ab"], [[1, 2], list[int]()], "what is held")
        same(await value_of(worker.store, '["b"]'), None, "the row of who came later in its lane")
        same(list((await worker.store.load(worker.leases[SLOT])).progress), [progress(4, [3, 4])], "the progress")
        same(await worker.commit(full), [Outcome.FULL], "the outcome in a commit of its own")
        first = (await worker.store.held(SLOT, "a"))[0]
        await worker.committed(worker.unit(releases=[first.id]))
        await worker.committed(full)
        same(await held_offsets(worker.store, "b"), [3], "what is held once there is room")


@case()
async def room_is_counted_in_bytes_too_and_by_subscription(harness: StoreUnderTest) -> None:
    size = len(stored(1).data)
    async with at_work(harness, SLOT, _MAIL_SLOT) as worker:
        tight = Room(records=1_000, size_bytes=size)
        same(
            await worker.commit(worker.unit(holds=[failed(1, "a"), behind(2, "a")], room=tight)),
            [Outcome.FULL],
            "the outcome of two",
        )
        await worker.committed(worker.unit(slot=_MAIL_SLOT, holds=[failed(1)] * 3, room=_WIDE))
        await worker.committed(worker.unit(holds=[failed(1, "a")], room=tight))
        same(await worker.commit(worker.unit(holds=[behind(2, "a")], room=tight)), [Outcome.FULL], "the outcome of one more")
        await worker.committed(worker.unit(holds=[behind(2, "a")]))  # one without a bound


@case()
async def room_is_there_again_when_a_subscription_was_retired(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.unit(holds=[failed(1), failed(2)], skips=[_skip(3)], room=_WIDE))
        await worker.store.attempt(worker.leases[SLOT], None)
        await worker.store.leave()
        await worker.store.retire(STOCK)
        same(await _skipped(worker), [], "what was passed over")
        same(list(await worker.store.verify()), [], "what is wrong")
