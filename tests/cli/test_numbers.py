"""What a worker counts reaches its supervisor whole, whatever the line makes of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from tests.observe.running import until

from everlog import Settings
from everlog.cli.crew import Crew
from everlog.cli.numbers import Listener, Teller
from everlog.errors import StartRefused
from everlog.observe import meters as families
from everlog.observe.meters import Meters, Snapshot


class Ends:
    """Both ends of a line, in one process."""

    def __init__(self) -> None:
        self.heard: list[Snapshot] = []
        self.listener = Listener(self.heard.append)
        environ = dict(self.listener.variables())
        (variable,) = environ
        environ[variable] = str(os.dup(int(environ[variable])))  # as a child has it
        teller = Teller.of(environ)
        assert teller is not None
        self.teller = teller
        self.environ = environ
        self.listener.listen()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    yield made
    made.listener.close()
    made.teller._line.close()


def meters_of(count: int) -> Meters:
    meters = Meters()
    for number in range(count):
        meters.add(families.HANDLED, number + 1, "shop", f"subscription {number}")
    return meters


async def test_each_snapshot_arrives_whole_and_in_order(ends: Ends) -> None:
    told = [meters_of(count) for count in (1, 5_000, 2)]  # the second does not fit into what the system takes at once
    for meters in told:
        await ends.teller.tell(meters)
    await until(lambda: len(ends.heard) == 3)
    assert ends.heard == [meters.snapshot() for meters in told]


async def test_what_is_on_the_line_when_the_worker_ends_is_heard(ends: Ends) -> None:
    await ends.teller.tell(meters_of(1))
    ends.teller._line.close()
    ends.listener.close()
    assert ends.heard == [meters_of(1).snapshot()]
    ends.listener.close()


async def test_a_supervisor_that_is_gone_ends_the_telling(ends: Ends) -> None:
    ends.listener.close()
    async with asyncio.timeout(30):
        await ends.teller.keep_telling(meters_of(1))


@pytest.mark.parametrize("sent", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02\xc1\xc1"])
async def test_what_is_no_snapshot_is_not_listened_to_any_more(ends: Ends, sent: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(ends.teller._line, sent)
    await ends.teller.tell(meters_of(1))
    ends.listener.close()
    assert ends.heard == []


async def test_what_a_worker_starts_does_not_tell(ends: Ends) -> None:
    assert ends.environ == {}
    assert Teller.of(ends.environ) is None
    assert Settings().from_env(ends.environ) == Settings()


@pytest.mark.parametrize("text", ["", "x", "-1", "1000000"])
def test_a_line_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(StartRefused, match="EVERLOG_NUMBERS"):
        Teller.of({"EVERLOG_NUMBERS": text})


def test_the_sums_of_a_crew_never_go_back() -> None:
    crew = Crew()
    for number in (1, 2):
        crew.started(number)
        crew.running(number)
        crew.heard(number, meters_of(1).snapshot())
    assert _value(crew, "everlog_events_handled") == 2
    crew.ended(1)
    assert _value(crew, "everlog_events_handled") == 2
    assert _value(crew, "everlog_worker_up") == 1
    crew.started(1)
    crew.ended(1)  # before it has said anything
    crew.started(1)
    crew.heard(1, meters_of(1).snapshot())
    assert _value(crew, "everlog_events_handled") == 3
    assert _value(crew, "everlog_worker_starts") == 4


def _value(crew: Crew, name: str) -> float:
    return sum(number.value for number in crew.snapshot().numbers if number.name == name)
