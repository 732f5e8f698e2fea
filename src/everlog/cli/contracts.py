"""`everlog contracts`: what a module's events look like, for other languages and for tools."""

from __future__ import annotations

from types import ModuleType
from typing import Annotated, Any

import typer

from everlog.app import App
from everlog.cli.modules import chosen, contracts_of, load
from everlog.cli.terminal import print_json
from everlog.contracts.contract import Contract
from everlog.contracts.document import Traffic, asyncapi, contracts_document, schema_of


def contracts(
    module: Annotated[str, typer.Argument(metavar="MODULE", help="The module with topics, events or apps.", show_default=False)],
    type_name: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="The schema of this type alone.", show_default=False)
    ] = None,
    as_asyncapi: Annotated[bool, typer.Option("--asyncapi", help="Print an AsyncAPI 3.0 document.")] = False,
    version: Annotated[str, typer.Option("--version", metavar="TEXT", help="The version that the document says.")] = "1.0.0",
) -> None:
    """Print the JSON Schemas of a module's events, or an AsyncAPI document of its apps."""
    if type_name is not None and as_asyncapi:
        raise typer.BadParameter("give --type or --asyncapi, not both")
    loaded = load(module)
    found = contracts_of(loaded)
    if type_name is not None:
        print_json(schema_of(found[chosen(type_name, list(found), what="event type", where=module)]))
    elif as_asyncapi:
        print_json(asyncapi(module, version, found.values(), _traffic(loaded)))
    else:
        print_json(contracts_document(found.values()))


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
