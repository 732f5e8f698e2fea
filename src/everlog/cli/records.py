"""A record as the command line prints it: one JSON object in the manner of CloudEvents, or one line for people."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from rich.text import Text

from everlog.cli.terminal import iso_time, local_time, printable
from everlog.contracts.cloudevents import one_line
from everlog.record import StoredRecord


def cloud_event(record: StoredRecord, *, position: str | None) -> dict[str, Any]:
    """Return the attributes of CloudEvents 1.0, the data as it is, and where the log has the record.

    Headers are apart from the attributes, so that no header can be taken for one. Data that is no JSON is in `data_base64`.

    Args:
        record: What to print.
        position: The token to go on reading behind it; ``None`` leaves it out.
    """
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": record.id,
        "source": record.source,
        "type": record.type,
        "subject": record.key,
        "time": iso_time(record.time_us),
        "datacontenttype": "application/json",
    }
    data = one_line(record.data)
    if data is None:
        event["data_base64"] = base64.b64encode(record.data).decode()
    else:
        event["data"] = msgspec.Raw(data)
    event["headers"] = dict(record.headers)
    event |= {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "logged_at": iso_time(record.logged_at_us),
    }
    if position is not None:
        event["position"] = position
    return event


def human_line(record: StoredRecord) -> Text:
    """Return time, place, type, key and data as one line that no record can break."""
    data = record.data.decode(errors="backslashreplace")
    return Text.assemble(
        (local_time(record.logged_at_us), "dim"),
        f" {record.topic}/{record.partition}@{record.offset} ",
        (printable(record.type), "bold"),
        " ",
        (printable(record.key) if record.key is not None else "–", "cyan"),
        " ",
        printable(data),
    )
