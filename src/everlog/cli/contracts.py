"""`everlog contracts`: what a module's events look like, for other languages and for tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import msgspec
import typer

from everlog.app import App
from everlog.cli.modules import chosen, contracts_of, load
from everlog.cli.terminal import counted, print_json, screen
from everlog.contracts.contract import Contract
from everlog.contracts.document import Traffic, asyncapi, contracts_document, earlier_contracts, schema_of
from everlog.contracts.topic import Topic
from everlog.errors import CommandRefused
from everlog.topics import first_difference


def contracts(
    module: Annotated[str, typer.Argument(metavar="MODULE", help="The module with topics, events or apps.", show_default=False)],
    type_name: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="The schema of this type alone.", show_default=False)
    ] = None,
    as_asyncapi: Annotated[bool, typer.Option("--asyncapi", help="Print an AsyncAPI 3.0 document.")] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check",
            metavar="FILE",
            help="Compare with what this command printed earlier; exits with 1 where an old promise is broken.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[str, typer.Option("--version", metavar="TEXT", help="The version that the document says.")] = "1.0.0",
) -> None:
    """Print the JSON Schemas of a module's events, or an AsyncAPI document of its apps."""
    if check is not None and (type_name is not None or as_asyncapi):
        raise typer.BadParameter("give --check alone: it compares all types", param_hint="--check")
    if type_name is not None and as_asyncapi:
        raise typer.BadParameter("give --type or --asyncapi, not both")
    loaded = load(module)
    found = contracts_of(loaded)
    if check is not None:
        _compare(module, found, check)
        return
    if type_name is not None:
        print_json(schema_of(found[chosen(type_name, list(found), what="event type", where=module)]))
    elif as_asyncapi:
        print_json(asyncapi(module, version, found.values(), _traffic(loaded)))
    else:
        print_json(contracts_document(found.values()))


def _compare(module: str, found: Mapping[str, Contract[Any]], file: Path) -> None:
    """Say what is new, or refuse what would break who relies on the earlier contracts.

    Raises:
        CommandRefused: A type or a topic is gone or is another one; names each.
    """
    try:
        earlier = earlier_contracts(file.read_bytes())
    except OSError as error:
        raise CommandRefused(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise CommandRefused(
            f"{file}: expected what `everlog contracts {module}` has printed, without --asyncapi, found another document: {error}"
        ) from error
    topics = {contract.topic.name: contract.topic for contract in found.values()}
    known = [name for topic in earlier.values() for name in topic["types"]]
    broken = [line for name, topic in earlier.items() for line in _broken(name, topic, topics.get(name), str(file))]
    if broken:
        for line in broken:
            screen().print(line, soft_wrap=True)
        raise CommandRefused(
            f"{counted(len(broken), 'promise')} of {file} broken by {module}: logs hold such events, and other services read them; "
            f"keep the old type and declare the new one under the next version"
        )
    new = [name for name in found if name not in known]
    screen().print(
        f"{module} keeps all {counted(len(known), 'type')} of {file}" + (f"; new: {', '.join(new)}" if new else ""),
        soft_wrap=True,
    )


def _broken(name: str, earlier: Mapping[str, Any], topic: Topic | None, place: str) -> Iterator[str]:
    if topic is None:
        yield f"topic {name}: gone"
        return
    for setting, now in (("key", topic.key), ("partitions", topic.partitions)):
        if earlier[setting] != now:
            yield f"topic {name}: {setting} was {earlier[setting]!r}, and is {now!r}"
    for type_name, schema in earlier["types"].items():
        contract = topic.contracts.get(type_name)
        if contract is None:
            yield f"{type_name}: gone"
        elif contract.schema != schema:
            yield f"{type_name}: {first_difference(schema, contract.schema, place=place)}"


def _traffic(module: ModuleType) -> list[Traffic]:
    """Return what each app of a module takes, and what its handlers say that they return."""
    apps: dict[str, App[Any]] = {value.name: value for value in vars(module).values() if isinstance(value, App)}
    traffic: list[Traffic] = []
    for name, app in sorted(apps.items()):
        branches = [branch for one in app.declaration().subscriptions for branch in one.branches.values()]
        receives: dict[str, Contract[Any]] = {branch.contract.name: branch.contract for branch in branches}
        sends: dict[str, Contract[Any]] = {one.name: one for branch in branches for one in branch.handler.returns}
        traffic.append(Traffic(name, list(receives.values()), list(sends.values())))
    return traffic
