"""The user's own modules: importing them as `python -m` would, and finding the apps and the contracts in them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from everlog.app import App
from everlog.cli.exits import place_of
from everlog.contracts.contract import Contract, contract_of
from everlog.contracts.topic import Topic
from everlog.errors import CommandRefused, EventRefused, ModuleRefused


def load(name: str) -> ModuleType:
    """Import a module, also from the current folder, which a console script does not have on its path.

    Raises:
        ModuleRefused: There is none of that name, or importing it failed; says where.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            hint = f": write {name[:-3].replace('/', '.')}, without .py" if name.endswith(".py") else ""
            raise ModuleRefused(f"there is no module {name!r} in {here} or among the installed packages{hint}") from error
        raise ModuleRefused(f"module {name!r} cannot be imported: {_said(error)}") from error
    except (Exception, SystemExit) as error:
        raise ModuleRefused(f"module {name!r} cannot be imported: {_said(error)}") from error


def _said(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}{place_of(error)}"


def apps_of(references: Sequence[str]) -> Sequence[App[Any]]:
    """Return the apps that `MODULE:APP` or, where a module has exactly one, `MODULE` name.

    Raises:
        ModuleRefused: One of them names no app, or two have one name; says what there is.
    """
    apps: dict[str, App[Any]] = {}
    for reference in references:
        app = _app(reference)
        if app.name in apps:
            raise ModuleRefused(
                f"{reference}: app {app.name!r} is given twice, and its store belongs to one of them: give each app once"
            )
        apps[app.name] = app
    return list(apps.values())


def _app(reference: str) -> App[Any]:
    module_name, _, attribute = reference.partition(":")
    module = load(module_name)
    apps: dict[str, App[Any]] = {name: value for name, value in vars(module).items() if isinstance(value, App)}
    choice = ", ".join(f"{module_name}:{name}" for name in apps) or "none"
    if attribute:
        if attribute in apps:
            return apps[attribute]
        if hasattr(module, attribute):
            raise ModuleRefused(
                f"{reference} is a {type(getattr(module, attribute)).__name__} and no App: the module has {choice}"
            )
        raise ModuleRefused(f"module {module_name!r} has no {attribute!r}: its apps are {choice}")
    if len({id(app) for app in apps.values()}) != 1:
        raise ModuleRefused(f"expected one App in module {module_name!r}, found {choice}: write MODULE:APP")
    return next(iter(apps.values()))


def contracts_of(module: ModuleType) -> Mapping[str, Contract[Any]]:
    """Return the contracts of a module's topics and event classes, by their names on the wire.

    Raises:
        CommandRefused: It has none, or two topics have a type of one name.
    """
    topics: dict[str, Topic] = {}
    for value in vars(module).values():
        if isinstance(value, Topic):
            topics[value.name] = value
        elif isinstance(value, type):
            with suppress(EventRefused):  # a class that was given to no topic
                topic = contract_of(value).topic
                topics[topic.name] = topic
    found: dict[str, Contract[Any]] = {}
    for topic in topics.values():
        for name, contract in topic.contracts.items():
            if name in found:
                raise CommandRefused(
                    f"{name!r} is a type of topic {found[name].topic.name!r} and of {topic.name!r}: give one of them another name"
                )
            found[name] = contract
    if not found:
        raise CommandRefused(f"module {module.__name__!r} declares no event type: expected topics with @topic.event(…) in it")
    return found


def chosen(name: str, known: Sequence[str], *, what: str, where: str) -> str:
    """Return `name` if it is known.

    Raises:
        CommandRefused: It is not; says what is close to it, or what there is.
    """
    if name in known:
        return name
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(known)) or 'none'}"
    raise CommandRefused(f"there is no {what} {name!r} in {where}: {hint}")
