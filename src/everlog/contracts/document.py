"""Contracts as documents that other languages read: a JSON Schema for each type, and AsyncAPI 3.0 for a whole app."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec

from everlog.contracts.contract import Contract
from everlog.contracts.schema import bare
from everlog.contracts.topic import Topic
from everlog.topics import unnamed

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_HEADERS: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["specversion", "id", "source", "type", "time"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1},
        "time": {"type": "string", "format": "date-time"},
        "subject": {"type": "string"},
        "datacontenttype": {"const": "application/json"},
        "correlationid": {"type": "string"},
        "causationid": {"type": "string"},
        "traceparent": {"type": "string"},
    },
}
"""The envelope, as the attributes of CloudEvents 1.0."""


class Traffic(NamedTuple):
    """What an app takes and what it says that it sends."""

    app: str
    receives: Sequence[Contract[Any]]
    sends: Sequence[Contract[Any]]


def schema_of(contract: Contract[Any]) -> dict[str, Any]:
    """Return the JSON Schema of a type's data, on its own."""
    found = cast("dict[str, Any]", msgspec.json.decode(contract.named_schema))
    return {"$schema": _DIALECT, "$id": f"urn:everlog:{contract.name}", "title": contract.name, **found}


def contracts_document(contracts: Iterable[Contract[Any]]) -> dict[str, Any]:
    """Return the topics with their types and schemas."""
    topics: dict[str, dict[str, Any]] = {}
    for contract in contracts:
        topic = topics.setdefault(contract.topic.name, {**_place(contract.topic), "types": {}})
        topic["types"][contract.name] = schema_of(contract)
    return {"topics": {name: topics[name] for name in sorted(topics)}}


def earlier_contracts(text: bytes) -> Mapping[str, Mapping[str, Any]]:
    """Return the topics of an earlier `contracts_document`: `key`, `partitions` and `types`, whose schemas are canonical JSON.

    Raises:
        ValueError: It is no such document; says what is missing.
    """
    document = msgspec.json.decode(text, type=_Document)
    return {
        name: {
            "key": topic.key,
            "partitions": topic.partitions,
            "types": {type_name: _canonical(schema) for type_name, schema in topic.types.items()},
        }
        for name, topic in document.topics.items()
    }


class _DocumentTopic(msgspec.Struct):
    key: str | None
    partitions: int
    types: dict[str, dict[str, Any]]


class _Document(msgspec.Struct):
    topics: dict[str, _DocumentTopic]


def _canonical(schema: Mapping[str, Any]) -> bytes:
    """Return a schema of `schema_of` as the contract has it: without dialect, address, names of classes and words for people."""
    rest = {name: value for name, value in schema.items() if name not in ("$schema", "$id")}
    return unnamed(msgspec.json.encode(bare(rest), order="sorted"))


def asyncapi(title: str, version: str, contracts: Iterable[Contract[Any]], traffic: Sequence[Traffic]) -> dict[str, Any]:
    """Return an AsyncAPI 3.0 document.

    Args:
        title: What it is about.
        version: Of the document.
        contracts: The types of all topics in it; those of `traffic` are added.
        traffic: The apps, each with an operation for every topic that it receives from or sends to.
    """
    every = {one.name: one for one in contracts}
    every |= {one.name: one for app in traffic for one in (*app.receives, *app.sends)}
    channels: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for name, contract in sorted(every.items()):
        key, topic = _key(name), contract.topic
        channel = channels.setdefault(
            _key(topic.name), {"address": topic.name, **{f"x-{k}": v for k, v in _place(topic).items()}, "messages": {}}
        )
        channel["messages"][key] = {"$ref": f"#/components/messages/{key}"}
        schemas[key] = _inlined(key, contract)
        messages[key] = {
            "name": name,
            "title": contract.cls.__name__,
            "contentType": "application/json",
            "headers": {**_HEADERS, "properties": {**_HEADERS["properties"], "type": {"const": name}}},
            "payload": {"$ref": f"#/components/schemas/{key}"},
        }
    operations: dict[str, Any] = {}
    for app in traffic:
        for action, of_app in (("receive", app.receives), ("send", app.sends)):
            for address, names in _by_topic(of_app).items():
                channel = _key(address)
                operations[_key(f"{app.app} {action} {address}")] = {
                    "action": action,
                    "title": f"{app.app} {action}s {address}",
                    "channel": {"$ref": f"#/channels/{channel}"},
                    "messages": [{"$ref": f"#/channels/{channel}/messages/{_key(name)}"} for name in names],
                }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def _place(topic: Topic) -> dict[str, Any]:
    return {"key": topic.key, "partitions": topic.partitions}


def _by_topic(contracts: Sequence[Contract[Any]]) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    for contract in sorted(contracts, key=lambda one: one.name):
        found.setdefault(contract.topic.name, []).append(contract.name)
    return {name: found[name] for name in sorted(found)}


def _key(name: str) -> str:
    """Return a name as a key of the document, which takes letters, digits, dots, dashes and underscores."""
    return "".join([sign if sign.isalnum() or sign in "._-" else "_" for sign in name])


def _inlined(key: str, contract: Contract[Any]) -> dict[str, Any]:
    """Return a schema whose references point into it where it stands in the document."""
    found = cast("dict[str, Any]", msgspec.json.decode(contract.named_schema))
    return cast("dict[str, Any]", _moved(found, f"#/components/schemas/{key}"))


def _moved(node: object, place: str) -> object:
    if isinstance(node, list):
        return [_moved(one, place) for one in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    moved: dict[str, object] = {}
    for name, value in cast("dict[str, object]", node).items():
        is_reference = name == "$ref" and isinstance(value, str) and value.startswith("#/")
        moved[name] = f"{place}{cast('str', value)[1:]}" if is_reference else _moved(value, place)
    return moved
