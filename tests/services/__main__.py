"""`make services` and `make services-down`: start the servers that the tests need, or stop those that were started."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

from tests.services.kafka import Kafka
from tests.services.place import Place, ServiceFailed, services_place
from tests.services.postgres import Postgres

KINDS: dict[str, Callable[[Place], Postgres | Kafka]] = {"postgres": Postgres, "kafka": Kafka}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make services", description="The servers that the tests need.")
    parser.add_argument("what", choices=("up", "down", "try"), help="try: a server that does not start is said, and is no error")
    parser.add_argument("names", nargs="*", metavar="SERVER", help=f"of {', '.join(KINDS)}; all by default")
    options = parser.parse_args(words)
    unknown = [name for name in options.names if name not in KINDS]
    if unknown:
        parser.error(f"no server is called {unknown[0]!r}: expected some of {', '.join(KINDS)}")
    place = services_place()
    failed = False
    for name in options.names or KINDS:
        try:
            _one(place, name, is_up=options.what != "down")
        except ServiceFailed as error:
            failed = True
            print(f"{error}", file=sys.stderr)
    if failed and options.what == "try" and os.environ.get("EVERLOG_REQUIRE_SERVERS") != "1":
        print("Tests of servers that are not here are skipped.", file=sys.stderr)
        return 0
    return int(failed)


def _one(place: Place, name: str, *, is_up: bool) -> None:
    began_s = time.monotonic()
    server = KINDS[name](place)
    if is_up:
        server.up()
        print(f"{name} is up ({time.monotonic() - began_s:.1f} s); {place.folder / 'env'} says where")
    else:
        print(f"{name} {'is stopped' if server.down() else 'was not started here'}")


if __name__ == "__main__":
    sys.exit(main())
