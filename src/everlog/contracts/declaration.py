"""What a class must be to carry events: checked once, when it is given to a topic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

from everlog.errors import DeclarationError

_KEY_TYPES: Final = (inspect.StrType, inspect.IntType, inspect.UUIDType, inspect.DecimalType, inspect.EnumType)
_NOT_JSON: Final = (inspect.CustomType, inspect.ExtType, inspect.RawType)


def check_class(cls: type, name: str, key: str | None) -> None:
    """Check that the round trip of an event through JSON proves it whole, and that its key is one.

    Args:
        cls: A struct or a dataclass.
        name: Its type on the wire, for the error.
        key: The field that holds the key; ``None`` where the topic has no key.

    Raises:
        DeclarationError: It cannot carry events; names the field and the line to write.
    """
    if not _is_carrier(cls):
        raise DeclarationError(f"{name!r}: expected a subclass of everlog.Event or a dataclass, found {cls!r}")
    info = check_values(cls, name, needs_zones=True)
    if key is not None:
        _check_key(info, cls, name, key)


def check_values(cls: Any, name: str, *, needs_zones: bool = False) -> inspect.Type:
    """Check that values of a type can be read back from JSON, and that being equal then proves them whole; return what it is.

    Args:
        cls: Any type.
        name: What it is declared for, for the error.
        needs_zones: A datetime in it must be declared with a zone: other programs will read it.

    Raises:
        DeclarationError: They cannot; names the place inside the type.
    """
    shown = getattr(cls, "__name__", str(cls))
    try:
        info = inspect.type_info(cls)
        msgspec.json.Decoder(cls)
    except (TypeError, NameError) as error:
        raise DeclarationError(f"{name!r}: {shown} cannot be read back from JSON: {error}") from error
    for path, found in _walk(info, shown, set()):
        _check_type(found, path, name, needs_zones=needs_zones)
    return info


def _is_carrier(cls: Any) -> bool:
    return isinstance(cls, type) and (issubclass(cls, msgspec.Struct) or dataclasses.is_dataclass(cast("Any", cls)))


def _fields(info: inspect.Type) -> tuple[inspect.Field, ...]:
    return info.fields if isinstance(info, inspect.StructType | inspect.DataclassType) else ()


def _check_key(info: inspect.Type, cls: type, name: str, key: str) -> None:
    field = next((field for field in _fields(info) if field.name == key), None)
    if field is None:
        names = ", ".join(field.name for field in _fields(info)) or "none"
        raise DeclarationError(
            f"{name!r}: the topic's key is the field {key!r}, and {cls.__name__} has: {names}. Add it, or use another topic"
        )
    choices = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
    for choice in choices:
        if isinstance(choice, inspect.NoneType):
            continue
        if not isinstance(choice, _KEY_TYPES):
            shown = type(choice).__name__.removesuffix("Type").lower()
            raise DeclarationError(f"{name!r}: the key field {key!r} is a {shown}: expected str, int, UUID, Decimal or an enum")


def _check_type(info: inspect.Type, path: str, name: str, *, needs_zones: bool) -> None:
    if needs_zones and isinstance(info, inspect.DateTimeType) and info.tz is not True:
        raise DeclarationError(
            f"{name!r}: {path} is a datetime without a zone, which names no moment: "
            f"write Annotated[datetime, msgspec.Meta(tz=True)]"
        )
    if isinstance(info, _NOT_JSON):
        raise DeclarationError(
            f"{name!r}: {path} has a type that JSON does not carry: use a struct, a dataclass or a built-in type"
        )
    if isinstance(info, inspect.StructType | inspect.DataclassType):
        compares = info.cls.__struct_config__.eq if isinstance(info, inspect.StructType) else "__eq__" in info.cls.__dict__
        if not compares:
            raise DeclarationError(f"{name!r}: {info.cls.__name__} does not compare by its fields: remove eq=False")
        if isinstance(info, inspect.DataclassType):
            for field in dataclasses.fields(info.cls):
                if not field.compare:
                    raise DeclarationError(
                        f"{name!r}: {info.cls.__name__}.{field.name} is left out when comparing: remove compare=False"
                    )


def _walk(info: inspect.Type, path: str, seen: set[type]) -> Iterator[tuple[str, inspect.Type]]:
    """Yield every type inside a type, with the path to it."""
    if isinstance(info, inspect.Metadata):
        info = info.type
    yield path, info
    if isinstance(info, inspect.StructType | inspect.DataclassType):
        if info.cls in seen:
            return
        seen.add(info.cls)
        for field in info.fields:
            yield from _walk(field.type, f"{path}.{field.name}", seen)
    else:
        if isinstance(info, inspect.NamedTupleType | inspect.TypedDictType):
            if info.cls in seen:
                return
            seen.add(info.cls)
        for inner, child in _parts(info, path):
            yield from _walk(child, inner, seen)


def _parts(info: inspect.Type, path: str) -> Iterator[tuple[str, inspect.Type]]:
    """Yield the types that a type other than a struct or dataclass is made of."""
    if isinstance(info, inspect.NamedTupleType | inspect.TypedDictType):
        for field in info.fields:
            yield f"{path}.{field.name}", field.type
    elif isinstance(info, inspect.UnionType):
        for choice in info.types:
            yield path, choice
    elif isinstance(info, inspect.TupleType):
        for element in info.item_types:
            yield f"{path}[]", element
    elif isinstance(info, inspect.CollectionType):
        yield f"{path}[]", info.item_type
    elif isinstance(info, inspect.DictType):
        yield f"{path} (keys)", info.key_type
        yield f"{path} (values)", info.value_type
