"""State as users declare it, and the canonical text of its keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, Generic, Protocol, TypeVar, cast
from uuid import UUID

import msgspec

from everlog.contracts.declaration import check_values
from everlog.errors import DeclarationError, StoreError, TxRefused

V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)

KeyPart = str | int | UUID
Key = KeyPart | tuple[KeyPart, ...]
"""What names a row: one value, or a tuple of them. A value and a tuple of it alone are the same key."""

_STATE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}/[1-9][0-9]{0,8}")
_encode_key: Final = msgspec.json.Encoder().encode
_NUMBERS: Final = (int, float, Decimal)


class Readable(Protocol[V_co]):
    """A state as it is read: one of `int` can be read as one of `int | None`, which a checker may ask for, but not written so."""

    @property
    def name(self) -> str:
        """The stored name."""
        ...

    def decode(self, data: bytes) -> V_co:
        """Return the value that a row holds."""
        ...


class State(Generic[V]):
    """A table of typed values that one subscription writes, and the others of its app may read.

    Made by `App.state` and `Subscription.state`; a declaration, without I/O.

    Raises:
        DeclarationError: The name has no version, or values of the type cannot be read back from JSON.
    """

    __slots__ = ("_decoder", "_name", "subscription", "type")

    def __init__(self, name: str, type_: type[V], *, subscription: str) -> None:
        if not _STATE_NAME.fullmatch(name):
            raise DeclarationError(f"expected a state name with its version, like 'stock/1', found {name!r}")
        self._name = name
        self.type = type_
        self.subscription = subscription
        check_values(type_, name)
        self._decoder: msgspec.json.Decoder[V] = msgspec.json.Decoder(type_)

    @property
    def name(self) -> str:
        """The stored name."""
        return self._name

    def __repr__(self) -> str:
        return f"State({self.name!r})"

    def encode(self, value: V) -> bytes:
        """Return the value as JSON, after proof that reading it back gives an equal one.

        Raises:
            TxRefused: It is not of the declared type.
        """
        try:
            data = msgspec.json.encode(value)
            if self._decoder.decode(data) == value:
                return data
            found = "what comes back from JSON is another value"
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, ArithmeticError) as error:
            found = str(error)
        raise TxRefused(
            f"state {self.name!r}: expected a value of the declared type, found {type(value).__name__} {str(value)[:60]!r}: {found}"
        )

    def decode(self, data: bytes) -> V:
        """Return the value that a row holds.

        Raises:
            StoreError: The row was written under another type.
        """
        try:
            return self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise StoreError(
                f"state {self.name!r} holds a row of another type ({error}): declare the new type under the next version"
            ) from error

    def check_amount(self, amount: object) -> None:
        """Check that `amount` can be added to its values.

        Raises:
            TxRefused: It is no number, or not of the declared type.
        """
        if isinstance(amount, bool) or not isinstance(amount, _NUMBERS) or not _is_finite(amount):
            raise TxRefused(f"state {self.name!r}: expected a finite number to add, found {type(amount).__name__} {amount!r}")
        if self.type in _NUMBERS and type(amount) is not self.type and not (self.type is float and type(amount) is int):
            raise TxRefused(
                f"state {self.name!r}: expected to add {cast('type[Any]', self.type).__name__}, found {type(amount).__name__} {amount!r}"
            )


def _is_finite(amount: float | Decimal) -> bool:
    return amount.is_finite() if isinstance(amount, Decimal) else amount - amount == 0


def key_text(key: Key) -> str:
    """Return a key's canonical JSON array text.

    Raises:
        TxRefused: A part of it is none of str, int and UUID.
    """
    if type(key) is str and key.isascii():  # as most are
        return _encode_key((key,)).decode()
    parts = cast("tuple[object, ...]", key if isinstance(key, tuple) else (key,))
    elements: list[str | int] = []
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int | UUID):
            raise TxRefused(f"expected a key of str, int and UUID, or a tuple of them, found {type(part).__name__} in {key!r}")
        elements.append(int(part) if isinstance(part, int) else str(part))
    try:
        return msgspec.json.encode(elements).decode()
    except (UnicodeEncodeError, OverflowError) as error:
        raise TxRefused(f"the key {key!r} cannot be written as JSON: {error}") from error


def key_of(text: str) -> tuple[str | int, ...]:
    """Return the parts of a key from its canonical text; a UUID comes back as text, which names the same row."""
    return tuple(cast("Sequence[str | int]", msgspec.json.decode(text)))
