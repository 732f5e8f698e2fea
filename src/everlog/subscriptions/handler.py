"""A handler: a function of an event, or of a batch of them, checked when it is declared."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Any

import msgspec

from everlog.contracts.contract import Contract, contract_of
from everlog.errors import DeclarationError, EventRefused


class Batching(msgspec.Struct, frozen=True):
    """How events are put together for a handler that takes several.

    Attributes:
        most: Most events of a call.
        wait_s: How long to wait for more after the first, in seconds.
    """

    most: int
    wait_s: float


class Handler(msgspec.Struct, frozen=True):
    """One function, and the contracts of what it takes and what it says it returns."""

    function: Callable[..., Any]
    contracts: Sequence[Contract[Any]]
    returns: Sequence[Contract[Any]]
    takes_tx: bool
    is_plain: bool = False
    """It is no coroutine function, and runs in a thread."""
    batching: Batching | None = None
    """It takes a list of events; ``None``: one."""

    @property
    def name(self) -> str:
        """For logs and errors; never stored."""
        return getattr(self.function, "__qualname__", repr(self.function))


def make_handler(function: Callable[..., Any], types: Sequence[type[Any]], batching: Batching | None = None) -> Handler:
    """Check a function and return it as a handler of `types`.

    Raises:
        DeclarationError: It takes something else than an event (or a list of them), or that and a `Tx`, or returns what is no event.
    """
    name = getattr(function, "__qualname__", repr(function))
    if not types:
        raise DeclarationError(f"{name}: expected at least one event type in .{'on' if batching is None else 'on_batch'}(…)")
    if batching is not None and (batching.most < 1 or batching.wait_s < 0):
        raise DeclarationError(
            f"{name}: expected most of at least 1 and wait_s of at least 0, found {batching.most} and {batching.wait_s}"
        )
    if not callable(function):
        raise DeclarationError(f"expected a function that handles events, found {function!r}")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise DeclarationError(f"{name} is a generator: return the events as a list, or publish each with tx.publish(…)")
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 a callable object's own method
    try:
        contracts = [contract_of(cls) for cls in types]
    except EventRefused as error:
        raise DeclarationError(f"{name}: {error}") from error
    returns, takes_tx = _returned(function, name), _takes_tx(function, name, "event" if batching is None else "events")
    return Handler(function, contracts, returns, takes_tx, not is_async, batching)


def _takes_tx(function: Callable[..., Any], name: str, first: str) -> bool:
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
        raise DeclarationError(f"{name} takes {inspect.signature(function)}: expected ({first}) or ({first}, tx), positionally")
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
