"""Pydantic models as events: the same contract as a struct with the same fields, written and read by pydantic itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from enum import Enum
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, TypeVar, Union, cast, get_args, get_origin
from uuid import UUID

import msgspec

from everlog.contracts.contract import Contract
from everlog.contracts.schema import bare
from everlog.errors import DeclarationError, EventRefused

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    from everlog.contracts.topic import Topic

M = TypeVar("M", bound="BaseModel")

_KEY_TYPES = (str, int, UUID, Decimal, Enum)


def is_model(cls: object) -> TypeGuard[type[BaseModel]]:
    """Tell whether a class is a pydantic model. Where pydantic was not imported, nothing is."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(cls, type) and issubclass(cls, pydantic.BaseModel)


class ModelContract(Contract[M]):
    """A contract whose events are instances of a pydantic model."""

    def _prepare(self, cls: type[M]) -> bytes:
        _check(cls, self.name, self.topic)
        from pydantic import TypeAdapter

        self._one = TypeAdapter(cls)
        self._all: TypeAdapter[list[M]] = TypeAdapter(list[cls])  # type: ignore[valid-type]  # a class known at run time
        return _schema(cls)

    def field_names(self) -> Sequence[str] | None:
        """Return the names that it is read under; ``None`` where it keeps what it does not know."""
        from pydantic import AliasChoices

        config = self.cls.model_config
        if config.get("extra") == "allow":
            return None
        names: dict[str, None] = {}
        for name, field in self.cls.model_fields.items():
            aliases = field.validation_alias
            choices = aliases.choices if isinstance(aliases, AliasChoices) else [aliases]
            names.update((one if isinstance(one, str) else str(one.path[0]), None) for one in choices if one is not None)
            if aliases is None or config.get("populate_by_name") or config.get("validate_by_name"):
                names[name] = None
        names.update((field.alias or name, None) for name, field in self.cls.model_computed_fields.items())
        return list(names)

    def encode(self, events: Sequence[M]) -> list[bytes]:
        """Return each event as JSON, after proof that reading it back gives an equal event. Raises as `Contract.encode`."""
        return [self.encode_one(event) for event in events]

    def encode_one(self, event: M) -> bytes:
        """Return one event as JSON, after the same proof."""
        from pydantic import ValidationError
        from pydantic_core import PydanticSerializationError

        try:
            data = self._one.dump_json(event, by_alias=True, warnings=False)  # what is wrong shows when it is read back
            again = self._one.validate_json(data)
        except PydanticSerializationError as error:
            raise EventRefused(f"{self.name!r}: the event cannot be written as JSON: {error}") from error
        except ValidationError as error:
            raise EventRefused(f"{self.name!r}: what it is written as cannot be read back: {_faults(error)}") from error
        if again != event:
            names = [name for name in type(event).model_fields if getattr(event, name) != getattr(again, name)]
            shown = ", ".join(names) or "a field that is not public"
            raise EventRefused(f"{self.name!r}: what comes back from JSON is another value: {shown}")
        self._check_size(data)
        return data

    def decode(self, data: bytes) -> M:
        """Return the event that one record's data holds. Raises as `Contract.decode`."""
        from pydantic import ValidationError

        try:
            return self._one.validate_json(data)
        except ValidationError as error:
            raise EventRefused(f"{self.name!r}: the stored bytes break the contract: {_faults(error)}") from error

    def decode_list(self, array: bytes) -> list[M]:
        """Return the events of a JSON array of them, in one call. Raises as `Contract.decode_list`."""
        from pydantic import ValidationError

        try:
            return self._all.validate_json(array)
        except ValidationError as error:
            raise EventRefused(f"{self.name!r}: stored bytes break the contract: {_faults(error)}") from error


def _faults(error: ValidationError) -> str:
    """Return what is wrong, without the values: they may be secrets."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, fault['loc'])) or 'the event'}: {fault['msg']}" for fault in faults[:3]]
    return "; ".join(shown) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")


# ---- what a model must be ----


def _check(cls: type[BaseModel], name: str, topic: Topic) -> None:
    from pydantic import RootModel

    if issubclass(cls, RootModel):
        raise DeclarationError(f"{name!r}: {cls.__name__} is a RootModel, and an event has fields: expected a BaseModel")
    if cls.__pydantic_generic_metadata__["parameters"]:
        raise DeclarationError(f"{name!r}: {cls.__name__} is generic: declare a class of it with its types filled in")
    if "__eq__" in cls.__dict__:
        raise DeclarationError(
            f"{name!r}: {cls.__name__} compares in a way of its own, so that nothing proves an event whole: remove __eq__"
        )
    cls.model_rebuild()
    for node in _nodes(cast("object", cls.__pydantic_core_schema__), set()):
        if node.get("type") == "datetime" and node.get("tz_constraint") != "aware":
            raise DeclarationError(
                f"{name!r}: {cls.__name__} has a datetime without a zone, which names no moment: write pydantic.AwareDatetime"
            )
    if topic.key is not None:
        _check_key(cls, name, topic.key)


def _check_key(cls: type[BaseModel], name: str, key: str) -> None:
    field = cls.model_fields.get(key)
    if field is None:
        names = ", ".join(cls.model_fields) or "none"
        raise DeclarationError(
            f"{name!r}: the topic's key is the field {key!r}, and {cls.__name__} has: {names}. Add it, or use another topic"
        )
    for choice in _choices(field.annotation):
        if choice is not type(None) and not (
            isinstance(choice, type) and issubclass(cast("type[Any]", choice), _KEY_TYPES) and choice is not bool
        ):
            raise DeclarationError(f"{name!r}: the key field {key!r} is a {choice}: expected str, int, UUID, Decimal or an enum")


def _choices(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _choices(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for choice in get_args(annotation):
            yield from _choices(choice)
    else:
        yield annotation


def _nodes(node: object, seen: set[int]) -> Iterator[dict[str, Any]]:
    """Yield every schema inside pydantic's own schema of a class."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, dict):
        inner = cast("dict[str, Any]", node)
        yield inner
        for name, value in inner.items():
            if name not in ("metadata", "default", "cls"):
                yield from _nodes(value, seen)
    elif isinstance(node, list | tuple):
        for value in cast("Sequence[object]", node):
            yield from _nodes(value, seen)


# ---- the schema ----


def _schema(cls: type[BaseModel]) -> bytes:
    """Return the JSON Schema as that of a struct with the same fields is: two services may write one contract in two ways."""
    from pydantic.json_schema import GenerateJsonSchema

    class AsStructs(GenerateJsonSchema):
        def decimal_schema(self, schema: Any) -> dict[str, Any]:  # noqa: ARG002 as pydantic has it
            return {"type": "string", "format": "decimal"}

        def enum_schema(self, schema: Any) -> dict[str, Any]:
            return _without_type(super().enum_schema(schema))

        def literal_schema(self, schema: Any) -> dict[str, Any]:
            return _without_type(super().literal_schema(schema))

    found = cls.model_json_schema(by_alias=True, schema_generator=AsStructs)
    definitions = found.pop("$defs", {})
    if "$ref" not in found:  # a class that refers to itself stands among the definitions already
        definitions[cls.__name__] = found
        found = {"$ref": f"#/$defs/{cls.__name__}"}
    return msgspec.json.encode(bare({**found, "$defs": definitions}), order="sorted")


def _without_type(schema: dict[str, Any]) -> dict[str, Any]:
    values = [schema["const"]] if "const" in schema else sorted(schema["enum"], key=_rank)
    return {"enum": values, **({"title": schema["title"]} if "title" in schema else {})}


def _rank(value: object) -> tuple[str, Any]:
    return type(value).__name__, value
