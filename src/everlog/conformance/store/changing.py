"""Units: what they read and write, when they are applied, and that they are applied whole."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

from decimal import Decimal

import msgspec

from everlog.conformance.cases import case, holds, same
from everlog.conformance.store.harness import (
    MAIL,
    MAIL_STATE,
    SLOT,
    STATE,
    StoreUnderTest,
    Worker,
    at_work,
    behind,
    emitted,
    failed,
    finished,
    held_offsets,
    number,
    numbers_in_outbox,
    progress,
    rows_of,
    value_of,
    version_of,
)
from everlog.store import Add, Delete, Outcome, Put, ScanRead, Slot, StateKey, Versioned, Write

_COMMITTED, _CONFLICT, _DROPPED, _REFUSED = Outcome.COMMITTED, Outcome.CONFLICT, Outcome.DROPPED, Outcome.REFUSED
_A, _B = '["a"]', '["b"]'


@case()
async def an_absent_row_has_no_value_and_version_0(harness: StoreUnderTest) -> None:
    async with at_work(harness) as worker:
        same(list(await worker.store.read([(STATE, _A), (STATE, _B)])), [Versioned(None, 0)] * 2, "the rows")
        same(list(await worker.store.read([])), [], "no rows")


@case()
async def a_row_holds_what_was_put_under_the_version_of_its_unit(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        first = worker.writing({_A: Put(b'{"n":1}'), _B: Put(b'"two"')})
        await worker.committed(first)
        second = worker.writing({_B: Put(b"[3]")})
        await worker.committed(second)
        found = await worker.store.read([(STATE, _B), (STATE, _A), (STATE, '["c"]')])
        same([row.version for row in found], [second.version, first.version, 0], "the versions, in the order asked for")
        same([row.value and msgspec.json.decode(row.value) for row in found], [[3], {"n": 1}, None], "the values")


@case()
async def a_deleted_row_is_as_if_it_had_never_been(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.writing({_A: Put(number(1))}))
        await worker.committed(worker.writing({_A: Delete(), _B: Delete()}))
        same(list(await worker.store.read([(STATE, _A), (STATE, _B)])), [Versioned(None, 0)] * 2, "the rows")
        same(list(await worker.store.scan(STATE, "[]")), [], "the scan")


@case()
async def states_of_one_key_are_apart(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, Slot(MAIL, 0)) as worker:
        await worker.committed(
            worker.writing({_A: Put(number(1))}), worker.unit(slot=Slot(MAIL, 0), writes={(MAIL_STATE, _A): Put(number(2))})
        )
        same((await value_of(worker.store, _A), await value_of(worker.store, _A, MAIL_STATE)), (1, 2), "the two states")


@case()
async def a_row_that_changed_since_it_was_read_is_a_conflict(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        first = worker.writing({_A: Put(number(1))})
        await worker.committed(first)
        await worker.committed(worker.writing({_A: Put(number(2))}))
        stale = worker.writing({_B: Put(number(3))}, reads={(STATE, _A): first.version})
        same(await worker.commit(stale), [_CONFLICT], "the outcome")
        same(await value_of(worker.store, _B), None, "the row of the unit")


@case()
async def a_row_that_appeared_or_went_since_it_was_read_is_a_conflict(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        made = worker.writing({_A: Put(number(1)), _B: Put(number(2))})
        await worker.committed(made)
        same(await worker.commit(worker.unit(reads={(STATE, _A): 0})), [_CONFLICT], "the outcome where a row appeared")
        await worker.committed(worker.writing({_B: Delete()}))
        same(await worker.commit(worker.unit(reads={(STATE, _B): made.version})), [_CONFLICT], "the outcome where a row went")
        await worker.committed(worker.unit(reads={(STATE, _A): made.version, (STATE, _B): 0}))


@case()
async def what_was_read_of_another_subscription_is_validated_too(harness: StoreUnderTest) -> None:
    mail = Slot(MAIL, 0)
    async with at_work(harness, SLOT, mail) as worker:
        first = worker.unit(slot=mail, writes={(MAIL_STATE, _A): Put(number(1))})
        await worker.committed(first)
        await worker.committed(worker.unit(slot=mail, writes={(MAIL_STATE, _A): Put(number(2))}))
        same(await worker.commit(worker.unit(reads={(MAIL_STATE, _A): first.version})), [_CONFLICT], "the outcome")


@case()
async def a_unit_sees_what_earlier_units_of_the_call_wrote(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        first = worker.writing({_A: Put(number(1)), _B: Put(number(9))})
        second = worker.writing({_A: Put(number(2))}, reads={(STATE, _A): first.version})
        third = worker.writing({_A: Add(5), _B: Delete()}, reads={(STATE, _A): second.version, (STATE, _B): first.version})
        fourth = worker.unit(reads={(STATE, _A): third.version, (STATE, _B): 0})
        await worker.committed(first, second, third, fourth)
        same((await value_of(worker.store, _A), await value_of(worker.store, _B)), (7, None), "the rows")
        same(await version_of(worker.store, (STATE, _A)), third.version, "the version")


@case()
async def a_unit_that_read_of_one_not_applied_is_not_applied_either(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.writing({_B: Put(number(1))}))
        fails = worker.writing({_A: Put(number(1))}, reads={(STATE, _B): 0})
        reads_it = worker.writing({_A: Put(number(2))}, reads={(STATE, _A): fails.version})
        other = worker.writing({_B: Put(number(3))})
        same(await worker.commit(fails, reads_it, other), [_CONFLICT, _CONFLICT, _COMMITTED], "the outcomes")
        same((await value_of(worker.store, _A), await value_of(worker.store, _B)), (None, 3), "the rows")


@case()
async def a_unit_that_is_not_applied_changes_nothing_at_all(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.writing({_A: Put(b'"text"')}, holds=[failed(1), behind(2)]))
        (first, _) = await worker.store.held(SLOT, "k", limit=2)
        table: list[tuple[dict[StateKey, int], dict[str, Write], Outcome]] = [
            ({(STATE, _A): 0}, {_B: Put(number(1))}, _CONFLICT),
            ({}, {_B: Put(number(1)), _A: Add(1)}, _REFUSED),
        ]
        for reads, writes, outcome in table:
            unit = worker.writing(
                writes, reads=reads, finishes=finished(9), emits=[emitted(1)], holds=[failed(3, "other")], releases=[first.id]
            )
            same(await worker.commit(unit), [outcome], "the outcome")
            same(await value_of(worker.store, _B), None, "the row that it puts")
            same(await value_of(worker.store, _A), "text", "the row that it cannot add to")
            same(await numbers_in_outbox(worker.store), [], "the outbox")
            same(await held_offsets(worker.store), [1, 2], "the held records")
            same(await held_offsets(worker.store, "other"), [], "the records of another key")


@case()
async def later_units_of_its_lane_are_dropped_and_other_lanes_are_not(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, Slot(MAIL, 0)) as worker:
        await worker.committed(worker.writing({_A: Put(number(1))}))
        stale = worker.unit("x", reads={(STATE, _A): 0})
        units = [
            worker.writing({_B: Put(number(1))}, "x"),
            stale,
            worker.writing({_B: Put(number(2))}, "x"),
            worker.writing({'["y"]': Put(number(3))}, "y"),
            worker.writing({'["none"]': Put(number(4))}),
            worker.unit("x", slot=Slot(MAIL, 0)),
            worker.unit("x"),
        ]
        same(
            await worker.commit(*units),
            [_COMMITTED, _CONFLICT, _DROPPED, _COMMITTED, _COMMITTED, _COMMITTED, _DROPPED],
            "the outcomes",
        )
        same([await value_of(worker.store, key) for key in (_B, '["y"]', '["none"]')], [1, 3, 4], "the rows")


@case()
async def a_unit_without_lane_is_never_dropped(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.writing({_A: Put(b'"text"')}))
        units = [worker.writing({_A: Add(1)}), worker.unit(), worker.unit(reads={(STATE, _A): 0}), worker.unit()]
        same(await worker.commit(*units), [_REFUSED, _COMMITTED, _CONFLICT, _COMMITTED], "the outcomes")


@case()
async def a_lane_is_dropped_behind_a_refused_unit_and_free_again_in_the_next_call(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(worker.writing({_A: Put(b'"text"')}))
        refused, later = worker.writing({_A: Add(1)}, "x"), worker.writing({_B: Put(number(1))}, "x")
        same(await worker.commit(refused, later), [_REFUSED, _DROPPED], "the outcomes")
        await worker.committed(later)


@case()
async def adding_never_conflicts(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        await worker.committed(*[worker.writing({_A: Add(amount)}) for amount in (5, -2, 10)])
        await worker.committed(worker.writing({_A: Add(-20)}))
        same(await value_of(worker.store, _A), -7, "the sum")
        last = worker.writing({_A: Add(0)})
        await worker.committed(last)
        same(await version_of(worker.store, (STATE, _A)), last.version, "the version after an addition")


@case()
async def adding_changes_the_version_for_those_who_read(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        first = worker.writing({_A: Put(number(1))})
        await worker.committed(first)
        await worker.committed(worker.writing({_A: Add(1)}))
        same(await worker.commit(worker.unit(reads={(STATE, _A): first.version})), [_CONFLICT], "the outcome")


@case()
async def amounts_add_up_in_their_own_kind(harness: StoreUnderTest) -> None:
    table: list[tuple[bytes | None, int | float | Decimal, object]] = [
        (None, 3, 3), (None, 2.5, 2.5), (None, Decimal("1.10"), "1.10"),
        (b"1", 2, 3), (b"1", 0.5, 1.5), (b"1.5", 1, 2.5), (b"-3", 3, 0),
        (b"9223372036854775807", 1, 9223372036854775808),
        (b'"1.10"', Decimal("2.20"), "3.30"), (b'"0.1"', Decimal("0.2"), "0.3"),
        (b'"12345678901234567890123456789.01"', Decimal("0.01"), "12345678901234567890123456789.02"),
    ]  # fmt: skip
    async with at_work(harness, SLOT) as worker:
        for before, amount, after in table:
            await _set(worker, before)
            await worker.committed(worker.writing({_A: Add(amount)}))
            found = await value_of(worker.store, _A)
            same((found, type(found)), (after, type(after)), f"{before!r} + {amount!r}")


@case()
async def adding_to_what_is_no_number_is_refused(harness: StoreUnderTest) -> None:
    table: list[tuple[bytes, int | float | Decimal]] = [
        (b'"text"', 1), (b"true", 1), (b"null", 1), (b"[1]", 1), (b'{"n":1}', 1), (b'"1"', 1), (b"1", True),
        (b"1", Decimal(1)), (b'"text"', Decimal(1)), (b'"NaN"', Decimal(1)), (b'"1"', Decimal("NaN")),
        (b"1", float("inf")), (b"1.7e308", 1.7e308),
    ]  # fmt: skip
    async with at_work(harness, SLOT) as worker:
        for before, amount in table:
            await _set(worker, before)
            same(await worker.commit(worker.writing({_A: Add(amount)})), [_REFUSED], f"{before!r} + {amount!r}")
            same(await value_of(worker.store, _A), msgspec.json.decode(before), "the row afterwards")


async def _set(worker: Worker, value: bytes | None) -> None:
    write: Write = Delete() if value is None else Put(value)
    await worker.committed(worker.writing({_A: write}))


_KEYS = (
    "[]",
    "[1]",
    "[10]",
    "[1,2]",
    "[12,1]",
    '["a"]',
    '["a","b"]',
    '["a","b","c"]',
    '["a,"]',
    '["a-"]',
    '["aa"]',
    '["ü","b"]',
    '["ü"]',
)
_BY_PREFIX = {
    "[]": list(_KEYS),
    '["a"]': ['["a"]', '["a","b"]', '["a","b","c"]'],
    '["a","b"]': ['["a","b"]', '["a","b","c"]'],
    '["a,"]': ['["a,"]'],
    "[1]": ["[1]", "[1,2]"],
    '["ü"]': ['["ü"]', '["ü","b"]'],
    '["b"]': [],
    '["a","b","c","d"]': [],
}


@case()
async def a_scan_gives_the_rows_under_whole_elements_of_its_prefix_by_key(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT, Slot(MAIL, 0)) as worker:
        await worker.committed(
            worker.writing({key: Put(number(index)) for index, key in enumerate(_KEYS)}),
            worker.unit(slot=Slot(MAIL, 0), writes={(MAIL_STATE, '["a","mail"]'): Put(number(1))}),
        )
        for prefix, keys in _BY_PREFIX.items():
            found = await worker.store.scan(STATE, prefix)
            same([key for key, _ in found], sorted(keys), f"the keys under {prefix}")
            values = [msgspec.json.decode(row.value or b"null") for _, row in found]
            same(values, [_KEYS.index(key) for key in sorted(keys)], f"the values under {prefix}")


@case()
async def a_scan_is_validated_over_all_the_rows_that_it_saw(harness: StoreUnderTest) -> None:
    changes: list[tuple[dict[str, Write], bool]] = [
        ({'["a","b"]': Put(number(0))}, True),  # another version
        ({'["a","z"]': Put(number(0))}, True),  # a row more
        ({'["a"]': Delete()}, True),  # a row less
        ({'["a","b","c"]': Add(1)}, True),
        ({'["aa"]': Put(number(0)), '["a,"]': Delete(), "[1]": Put(number(0))}, False),  # not under the prefix
        ({'["a","new"]': Delete()}, False),  # was not there, is not there
    ]
    for change, is_conflict in changes:
        for is_same_call in (False, True):
            async with at_work(harness, SLOT) as worker:
                await worker.committed(worker.writing({key: Put(number(1)) for key in _KEYS}))
                seen = ScanRead(STATE, '["a"]', rows_of(await worker.store.scan(STATE, '["a"]')))
                changing, scanning = worker.writing(change), worker.unit(scans=[seen])
                expected = _CONFLICT if is_conflict else _COMMITTED
                if is_same_call:
                    outcomes = await worker.commit(changing, scanning)
                else:
                    outcomes = [*await worker.commit(changing), *await worker.commit(scanning)]
                same(outcomes, [_COMMITTED, expected], f"the outcomes of {change}, in one call: {is_same_call}")
                await worker.committed(worker.writing({key: Delete() for key in (*_KEYS, '["a","z"]')}))


@case()
async def a_scan_that_saw_nothing_is_validated_too(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        nothing = ScanRead(STATE, '["a"]', ())
        await worker.committed(worker.unit(scans=[nothing]))
        adds = worker.writing({'["a","b"]': Put(number(1))})
        same(await worker.commit(adds, worker.unit(scans=[nothing])), [_COMMITTED, _CONFLICT], "the outcomes")


@case()
async def two_units_that_read_the_same_and_write_it_cannot_both_be_applied(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        first, second = (worker.writing({_A: Put(number(n))}, reads={(STATE, _A): 0}) for n in (1, 2))
        same(await worker.commit(first, second), [_COMMITTED, _CONFLICT], "the outcomes")
        same(await value_of(worker.store, _A), 1, "the row")


@case()
async def a_call_without_units_is_no_mistake(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        same(await worker.commit(), [], "the outcomes")
        same(await worker.commit(progress=[progress(3)]), [], "the outcomes")


@case()
async def a_large_group_is_applied_in_order(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        units = [worker.writing({f"[{n % 7}]": Put(number(n))}, emits=[emitted(n, key=f"{n}")]) for n in range(700)]
        await worker.committed(*units)
        same([await value_of(worker.store, f"[{n}]") for n in range(7)], list(range(693, 700)), "the last values")
        same(await numbers_in_outbox(worker.store), list(range(700)), "the outbox")
        holds((await worker.store.status()).outbox == 700, "the status counts the outbox")
