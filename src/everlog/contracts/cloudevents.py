"""CloudEvents 1.0 in their JSON format: how other tools read what a log holds, and how their events come in.

Source: https://github.com/cloudevents/spec, the documents `spec.md` and `formats/json-format.md` of v1.0.2.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple, cast
from urllib.parse import quote

import msgspec

from everlog.clock import to_datetime, to_us
from everlog.contracts.envelope import OURS
from everlog.errors import EventRefused
from everlog.record import StoredRecord

_LONGEST: Final = 8_192
"""Bytes of one attribute: far more than a trace's state has, and no bulk."""
_NAME: Final = re.compile(r"[a-z0-9]{1,64}")
_JSON_TYPE: Final = re.compile(r"(application|text)/json|[^/;]+/[^/;]+\+json")
_URI_SIGNS: Final = ":/?#[]@!$&'()*+,;=~%-._"
_OWN: Final = frozenset({"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"})

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Incoming(NamedTuple):
    """An event of somebody else: its attributes, and its data, which no contract has accepted yet."""

    id: str
    source: str
    type: str
    subject: str | None
    time_us: int | None
    """Microseconds since 1970 UTC."""
    headers: Mapping[str, str]
    """Its extensions, as text."""
    data: bytes
    """JSON."""


def outgoing(record: StoredRecord, *, position: str | None) -> dict[str, Any]:
    """Return a record as the JSON format of CloudEvents has it.

    Headers are extension attributes. Where the log has the record is in `everlogtopic`, `everlogpartition`, `everlogoffset` (text:
    their whole numbers have 32 bits) and `everlogtime`.

    Args:
        record: What to write.
        position: The token to go on reading behind it, for `everlogposition`; ``None`` leaves it out.
    """
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": record.id,
        "source": quote(record.source, safe=_URI_SIGNS),
        "type": record.type,
    }
    if record.key:  # an empty subject is none
        event["subject"] = record.key
    event["time"] = _rfc3339(record.time_us)
    if record.schema:
        event["dataschema"] = f"urn:everlog:{quote(record.type)}#{record.schema:x}"
    event |= {name: value for name, value in record.headers.items() if value}  # an empty text is no value
    event[f"{OURS}topic"] = record.topic
    event[f"{OURS}partition"] = record.partition
    event[f"{OURS}offset"] = str(record.offset)
    event[f"{OURS}time"] = _rfc3339(record.logged_at_us)
    if position is not None:
        event[f"{OURS}position"] = position
    data = one_line(record.data)
    if data is None:
        return event | {"datacontenttype": "application/octet-stream", "data_base64": base64.b64encode(record.data).decode()}
    return event | {"datacontenttype": "application/json", "data": msgspec.Raw(data)}


def incoming(text: bytes) -> Incoming:
    """Return the event that a JSON object in the JSON format of CloudEvents is.

    Raises:
        EventRefused: It is none, or has no JSON as its data; names the attribute.
    """
    try:
        raw = _object.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventRefused(f"expected a CloudEvent as one JSON object, found no such: {error}") from error
    payload: dict[str, msgspec.Raw] = {name: raw.pop(name) for name in ("data", "data_base64") if name in raw}
    found = {name: value for name, value in ((name, _attribute(name, inner)) for name, inner in raw.items()) if value is not None}
    if (version := found.get("specversion")) != "1.0":
        raise EventRefused(f"specversion: expected 1.0 of CloudEvents, found {_shown(version)}")
    for name in ("id", "source", "type"):
        if not found.get(name):
            raise EventRefused(f"{name}: expected text, found {'an empty one' if name in found else 'none'}")
    return Incoming(
        found["id"],
        found["source"],
        found["type"],
        found.get("subject"),
        _time(found["time"]) if "time" in found else None,
        {name: value for name, value in found.items() if name not in _OWN and not name.startswith(OURS)},
        _data(payload, found.get("datacontenttype")),
    )


def one_line(data: bytes) -> bytes | None:
    """Return JSON without the white space between its parts, values untouched; ``None`` where it is no JSON."""
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
        return msgspec.json.format(data, indent=-1)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _attribute(name: str, raw: msgspec.Raw) -> str | None:
    """Return an attribute as text, as the headers of other bindings carry it; ``None`` where it is not set."""
    if not _NAME.fullmatch(name):
        raise EventRefused(f"attribute {_shown(name)}: expected a name of lower-case letters and digits")
    try:
        value = cast("object", msgspec.json.decode(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventRefused(f"attribute {name}: {error}") from error
    if value is None:
        return None
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, int) and name not in _OWN:
        value = str(value)
    if not isinstance(value, str):
        wanted = "text" if name in _OWN else "text, a whole number or a boolean"
        raise EventRefused(f"attribute {name}: expected {wanted}, found {_shown(value)}")
    if len(value.encode()) > _LONGEST:
        raise EventRefused(f"attribute {name}: expected at most {_LONGEST:,} bytes, found {len(value.encode()):,}")
    return value


def _time(text: str) -> int:
    try:
        return to_us(msgspec.convert(text, _Moment))
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise EventRefused(f"time: expected a moment like 2026-11-23T10:00:00Z, found {_shown(text)}") from error


def _data(payload: Mapping[str, msgspec.Raw], content_type: str | None) -> bytes:
    if content_type is not None and not _JSON_TYPE.fullmatch(content_type.partition(";")[0].strip().lower()):
        raise EventRefused(f"datacontenttype: expected application/json, found {_shown(content_type)}")
    if len(payload) != 1:
        raise EventRefused(f"data: expected the event as JSON, found {'data and data_base64' if payload else 'none'}")
    if "data" in payload:
        return bytes(payload["data"])
    try:
        return base64.b64decode(msgspec.json.decode(payload["data_base64"], type=str), validate=True)
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise EventRefused(f"data_base64: {error}") from error


def _rfc3339(time_us: int) -> str:
    return to_datetime(time_us).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _shown(value: object) -> str:
    text = repr(value) if value is not None else "none"
    return text if len(text) <= 60 else text[:60] + "…"
