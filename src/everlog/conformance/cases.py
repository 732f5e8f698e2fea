"""The frame of a conformance suite: what a case is, how it is found, and how it says what was broken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Generic, Protocol, TypeGuard, TypeVar

from everlog.clock import Clock

PATIENCE_S: Final = 10.0
"""How long a case waits, in real time, for what was promised to come at once."""

H = TypeVar("H")
T = TypeVar("T")


class Broken(AssertionError):
    """An adapter does not keep a promise of its port. The text says what was expected and what was found."""


class MovableClock(Clock, Protocol):
    """A clock that a case moves; `everlog.testing.clock.ManualClock` is one."""

    def advance(self, seconds: float) -> None:
        """Move both times forward by `seconds` ≥ 0, and wake who sleeps until then."""
        ...

    def jump(self, seconds: float) -> None:
        """Move the wall time alone, forward or back."""
        ...


@dataclass(frozen=True, slots=True)
class Case(Generic[H]):
    """One promise of a port, as a function that fails where it is not kept.

    Attributes:
        run: Takes a fresh harness; raises `Broken` where the promise is not kept.
        needs: The features without which the promise is not made, apart by spaces; ``None`` where everybody makes it.
    """

    run: Callable[[H], Awaitable[None]]
    needs: str | None

    @property
    def name(self) -> str:
        """The promise as a Python name: a sentence."""
        return getattr(self.run, "__name__", repr(self.run))

    def applies_to(self, features: object) -> bool:
        """Say whether an adapter with these features makes the promise."""
        # "memory" is the one durability that promises nothing.
        return all(getattr(features, name) not in (False, None, "memory") for name in (self.needs or "").split())

    async def __call__(self, harness: H) -> None:
        """Run the case; return where the promise is kept."""
        try:
            await self.run(harness)
        except Exception as error:
            error.add_note(f"the promise: {self.name.replace('_', ' ')}")
            raise


def case(*, needs: str | None = None) -> Callable[[Callable[[H], Awaitable[None]]], Case[H]]:
    """Make a case of an async function. Its name is the promise, as a sentence."""

    def made(run: Callable[[H], Awaitable[None]]) -> Case[H]:
        return Case(run, needs)

    return made


def cases_of(module: ModuleType) -> Sequence[Case[Any]]:
    """Return the cases of a module, in the order in which they are written."""
    return [value for value in vars(module).values() if _is_case(value)]


def _is_case(value: object) -> TypeGuard[Case[Any]]:
    return isinstance(value, Case)


async def soon(awaitable: Awaitable[T], promise: str) -> T:
    """Return what `awaitable` gives.

    Raises:
        Broken: It gave nothing for `PATIENCE_S` seconds, where `promise` says that it comes at once.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await awaitable
    except TimeoutError as error:
        raise Broken(f"{promise}; nothing came for {PATIENCE_S:g} s") from error


def same(found: object, expected: object, what: str) -> None:
    """Check that two values are equal; of two lists, only what follows their common start is shown.

    Not `assert`, which says nothing under `python -O`.

    Raises:
        Broken: They differ.
    """
    if found == expected:
        return
    if _is_list(found) and _is_list(expected):
        raise Broken(f"{what}: {_first_difference(found, expected)}")
    raise Broken(f"{what}: expected {_shown(expected)}, found {_shown(found)}")


def _is_list(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def _first_difference(found: list[object], expected: list[object]) -> str:
    pairs = enumerate(zip(found, expected, strict=False))
    at = next((index for index, (one, other) in pairs if one != other), min(len(found), len(expected)))
    return f"expected {_shown(expected[at:])} from index {at} of {len(expected)}, found {_shown(found[at:])} of {len(found)}"


def holds(statement: bool, what: str) -> None:
    """Check that a statement is true.

    Raises:
        Broken: It is not.
    """
    if not statement:
        raise Broken(what)


@contextmanager
def raises(kind: type[Exception], mentioning: str = "") -> Generator[None]:
    """Check that the block raises an error of `kind` whose text holds `mentioning`.

    Raises:
        Broken: It raised nothing, or the text does not mention it. Another error passes through.
    """
    try:
        yield
    except kind as error:
        if mentioning not in str(error):
            raise Broken(f"expected a {kind.__name__} that mentions {mentioning!r}, found {str(error)!r}") from error
    else:
        raise Broken(f"expected {kind.__name__}, and nothing was raised")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:300] + "…"
