"""Everlog: services that react to facts. A durable log, exactly-once state, and the same code from a laptop to a cluster."""

from everlog.app import App
from everlog.blocking import blocking
from everlog.client import Client
from everlog.contracts.event import Event
from everlog.contracts.record import Record
from everlog.contracts.topic import Topic
from everlog.settings import Settings
from everlog.subscriptions.delivery import Delivery, Retry
from everlog.subscriptions.state import State
from everlog.subscriptions.tx import Tx

__all__ = ["App", "Client", "Delivery", "Event", "Record", "Retry", "Settings", "State", "Topic", "Tx", "blocking"]
