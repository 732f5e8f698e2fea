"""Topics: created once, found again, and never changed by a declaration."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

import msgspec

from everlog.conformance.cases import case, raises, same
from everlog.conformance.log.harness import LogUnderTest, opened, record
from everlog.errors import FeatureMissing, SchemaMismatch, TopicMismatch, TopicMissing
from everlog.log import Log, TopicSpec

_ONE: Final = b'{"properties":{"id":{"type":"integer"}},"type":"object"}'
_TWO: Final = b'{"properties":{"id":{"type":"string"}},"type":"object"}'
_FULL: Final = TopicSpec("conformance.full", key="id", partitions=3, types={"conformance.one/1": _ONE})


async def _spec(log: Log, name: str) -> TopicSpec:
    (found,) = [spec for spec in await log.topics() if spec.name == name]
    return found


@case()
async def a_topic_is_kept_as_it_was_declared(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(_FULL)
        same(await _spec(log, _FULL.name), _FULL, "the topic")


@case()
async def a_topic_without_key_and_types_is_kept(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        plain = TopicSpec("conformance.plain", key=None, partitions=1)
        await log.ensure_topic(plain)
        same(await _spec(log, plain.name), plain, "the topic")


@case()
async def ensuring_a_topic_twice_changes_nothing(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(_FULL)
        await log.append(_FULL.name, [record(1)])
        before = await log.head(_FULL.name)
        await log.ensure_topic(_FULL)
        same(await _spec(log, _FULL.name), _FULL, "the topic")
        same(await log.head(_FULL.name), before, "its head")


@case()
async def topics_are_listed_by_name(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        for name in ("conformance.b", "conformance.c", "conformance.a"):
            await log.ensure_topic(TopicSpec(name, key=None, partitions=1))
        names = [spec.name for spec in await log.topics()]
        same(names, sorted(names), "the order")
        same(len([name for name in names if name in {"conformance.a", "conformance.b", "conformance.c"}]), 3, "their number")


@case()
async def another_setting_is_refused_by_its_name_and_changes_nothing(harness: LogUnderTest) -> None:
    others: dict[str, object] = {"key": "other", "partitions": 5, "hash": "crc32"}
    async with opened(harness) as log:
        if log.features.retention:
            others |= {"keep_s": 60.0, "keep_bytes": 1 << 41, "keep_newest": True}
        if log.features.conditional_append:
            others["streams"] = True
        await log.ensure_topic(_FULL)
        for setting, value in others.items():
            # Any: `replace` takes each field under its own type, and here they come from a table.
            changed: TopicSpec = msgspec.structs.replace(_FULL, **{setting: value})
            with raises(TopicMismatch, setting):
                await log.ensure_topic(changed)
        same(await _spec(log, _FULL.name), _FULL, "the topic")


@case(needs="retention")
async def the_limits_of_retention_are_kept_as_declared(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        limited = msgspec.structs.replace(_FULL, keep_s=86_400.0, keep_bytes=1 << 40, keep_newest=True)
        await log.ensure_topic(limited)
        same(await _spec(log, _FULL.name), limited, "the topic")


@case(needs="retention")
async def limits_are_changed_by_set_retention_and_by_nothing_else(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(_FULL)
        for keep_s, keep_bytes in ((60.0, None), (None, 1 << 20), (60.0, 1 << 20), (None, None)):
            await log.set_retention(_FULL.name, keep_s=keep_s, keep_bytes=keep_bytes)
            changed = msgspec.structs.replace(_FULL, keep_s=keep_s, keep_bytes=keep_bytes)
            same(await _spec(log, _FULL.name), changed, "the topic")
            await log.ensure_topic(changed)
            with raises(TopicMismatch, "everlog topics set"):
                await log.ensure_topic(msgspec.structs.replace(_FULL, keep_s=1.0))


@case(needs="retention")
async def a_limit_that_keeps_nothing_is_refused_and_changes_nothing(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(_FULL)
        limits: list[tuple[float | None, int | None]] = [
            (0.0, None),
            (-1.0, None),
            (math.inf, None),
            (math.nan, None),
            (None, 0),
            (None, -1),
        ]
        for keep_s, keep_bytes in limits:
            with raises(ValueError, "above 0"):
                await log.set_retention(_FULL.name, keep_s=keep_s, keep_bytes=keep_bytes)
            with raises(ValueError, "above 0"):
                await log.ensure_topic(TopicSpec("conformance.nothing", key="id", keep_s=keep_s, keep_bytes=keep_bytes))
        same(await _spec(log, _FULL.name), _FULL, "the topic")
        same([spec.name for spec in await log.topics() if spec.name == "conformance.nothing"], [], "topics made by asking")


@case()
async def what_the_log_cannot_honour_is_refused_and_makes_no_topic(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        wanted = [
            ("retention", {"keep_s": 60.0}),
            ("retention", {"keep_newest": True}),
            ("conditional_append", {"streams": True}),
        ]
        for feature, settings in wanted:
            if not getattr(log.features, feature):
                # Any: as above
                asking: TopicSpec = msgspec.structs.replace(_FULL, **settings)  # type: ignore[arg-type]
                with raises(FeatureMissing, _FULL.name):
                    await log.ensure_topic(asking)
        same([spec.name for spec in await log.topics() if spec.name == _FULL.name], [], "topics made by asking")


@case()
async def another_schema_under_a_type_is_refused_with_the_place_that_differs(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(_FULL)
        with raises(SchemaMismatch, "$.properties.id.type"):
            await log.ensure_topic(msgspec.structs.replace(_FULL, types={"conformance.new/1": _TWO, "conformance.one/1": _TWO}))
        same(await _spec(log, _FULL.name), _FULL, "the topic")


@case()
async def types_that_are_new_are_added_and_none_is_taken_away(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.ensure_topic(_FULL)
        await log.ensure_topic(msgspec.structs.replace(_FULL, types={"conformance.two/1": _TWO}))
        await log.ensure_topic(msgspec.structs.replace(_FULL, types={}))
        both = {"conformance.one/1": _ONE, "conformance.two/1": _TWO}
        same(await _spec(log, _FULL.name), msgspec.structs.replace(_FULL, types=both), "the topic")


@case()
async def a_topic_that_does_not_exist_is_refused_by_name(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        missing = "conformance.missing"
        with raises(TopicMissing, missing):
            await log.append(missing, [record(1)])
        with raises(TopicMissing, missing):
            await log.head(missing)
        with raises(TopicMissing, missing):
            await log.first(missing)
        with raises(TopicMissing, missing):
            await log.position_at(missing, datetime(2026, 1, 1, tzinfo=UTC))
        if log.features.retention:
            with raises(TopicMissing, missing):
                await log.gone_through(missing)
            with raises(TopicMissing, missing):
                await log.set_retention(missing, keep_s=60.0, keep_bytes=None)
        same([spec.name for spec in await log.topics() if spec.name == missing], [], "topics made by asking")
