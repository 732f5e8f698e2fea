"""A handler: an async function of an event, checked when it is declared."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Any

import msgspec

from everlog.contracts.contract import Contract, contract_of
from everlog.errors import DeclarationError, EventRefused


class Handler(msgspec.Struct, frozen=True):
    """One function, and the contracts of what it takes and what it says it returns."""

    function: Callable[..., Awaitable[Any]]
    contracts: Sequence[Contract[Any]]
    returns: Sequence[Contract[Any]]
    takes_tx: bool

    @property
    def name(self) -> str:
        """For logs and errors; never stored."""
        return getattr(self.function, "__qualname__", repr(self.function))


def make_handler(function: Callable[..., Any], types: Sequence[type[Any]]) -> Handler:
    """Check a function and return it as a handler of `types`.

    Raises:
        DeclarationError: It is not async, takes something else than an event, or an event and a `Tx`, or returns what is no event.
    """
    name = getattr(function, "__qualname__", repr(function))
    if not types:
        raise DeclarationError(f"{name}: expected at least one event type in .on(…)")
    if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))):  # noqa: B004 a callable object's own method
        raise DeclarationError(f"{name} is not async: write `async def {name.rpartition('.')[2]}(…)`")
    try:
        contracts = [contract_of(cls) for cls in types]
    except EventRefused as error:
        raise DeclarationError(f"{name}: {error}") from error
    return Handler(function, contracts, _returned(function, name), _takes_tx(function, name))


def _takes_tx(function: Callable[..., Any], name: str) -> bool:
    positional = 0
    for parameter in inspect.signature(function).parameters.values():
        if (
            parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            and parameter.default is parameter.empty
        ):
            positional += 1
        elif parameter.default is parameter.empty:
            positional = -1
            break
    if positional not in (1, 2):
        raise DeclarationError(f"{name} takes {inspect.signature(function)}: expected (event) or (event, tx), positionally")
    return positional == 2


def _returned(function: Callable[..., Any], name: str) -> Sequence[Contract[Any]]:
    """Return the contracts that the return annotation names; none where there is no annotation, or it cannot be evaluated here."""
    try:
        annotation = typing.get_type_hints(function).get("return", NoneType)
    except (NameError, TypeError, AttributeError):
        return []
    contracts: list[Contract[Any]] = []
    for cls in _classes(annotation):
        try:
            contracts.append(contract_of(cls))
        except EventRefused as error:
            raise DeclarationError(
                f"{name} returns {annotation!r}: expected None, events or a sequence of events: {error}"
            ) from error
    return contracts


def _classes(annotation: Any) -> Iterator[type[Any]]:
    origin = typing.get_origin(annotation)
    if annotation in (NoneType, Any, Ellipsis):
        return
    if origin in (typing.Union, UnionType, list, tuple, Sequence, typing.Annotated):
        arguments = typing.get_args(annotation)
        for argument in arguments[:1] if origin is typing.Annotated else arguments:
            yield from _classes(argument)
    elif isinstance(annotation, type):
        yield annotation
