"""For tests of apps: a `tx` for one handler, and a world for several apps, in memory and with a time that is moved by hand."""

from everlog.testing.clock import ManualClock
from everlog.testing.failures import EventFailed, Unsettled
from everlog.testing.handler_tx import HandlerTx, record, tx
from everlog.testing.world import World

__all__ = ["EventFailed", "HandlerTx", "ManualClock", "Unsettled", "World", "record", "tx"]
