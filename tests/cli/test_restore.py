"""`everlog restore`: a plan first, then a question, and the old file is never overwritten."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.shop import Cli, Start, on_terminal, publish

from everlog.drivers.sqlite.bell import Bell
from everlog.subscriptions import mending


def worked(start: Start, *, orders: int) -> None:
    """Let an app handle what is there."""
    worker = start("run", "shop:loyalty")
    worker.wait_for("is running")
    for _ in range(orders):
        worker.wait_for("rewarded")
    assert worker.end(signal.SIGTERM) == 0


def names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


@pytest.fixture
def backup(shop: Path, cli: Cli, start: Start) -> Path:
    """A backup of the log and a store that know one order, beside files that know two."""
    publish(cli, "ada")
    worked(start, orders=1)
    assert cli("backup", "out", "loyalty").exit_code == 0
    publish(cli, "bob")
    worked(start, orders=1)
    return shop / "out"


def test_a_store_is_put_back_and_the_old_file_is_moved_aside(shop: Path, cli: Cli, start: Start, backup: Path) -> None:
    before, copy = (shop / ".everlog/loyalty.db").read_bytes(), (backup / "loyalty.db").read_bytes()
    result = cli("restore", "loyalty", "--from", "out/loyalty.db", "--yes")
    assert result.exit_code == 0, result.output
    assert "subscription loyalty: 1 event will be handled, some of them perhaps again" in result.output
    (aside,) = [name for name in names(shop / ".everlog") if "before" in name]
    assert (shop / ".everlog" / aside).read_bytes() == before
    assert (backup / "loyalty.db").read_bytes() == copy
    assert names(backup) == ["log.db", "loyalty.db"]
    worked(start, orders=1)
    assert "nothing is wrong" in cli("verify", "--app", "loyalty").output


def test_the_log_is_put_back_and_says_what_will_be_gone(shop: Path, cli: Cli, start: Start, backup: Path) -> None:
    result = cli("restore", "--from", "out/log.db", "--yes")
    assert result.exit_code == 0, result.output
    assert "shop.orders: 1 event since" in result.output
    assert "apps that work with it: loyalty" in result.output
    assert "run the apps" in result.output
    refused = start("run", "shop:loyalty")
    assert (refused.end(), "everlog restore loyalty" in refused.text) == (4, True)
    assert cli("restore", "loyalty", "--yes").exit_code == 0
    publish(cli, "cy")
    worked(start, orders=1)


def test_a_damaged_file_is_replaced_and_kept(shop: Path, cli: Cli, start: Start, backup: Path) -> None:
    log = shop / ".everlog/log.db"
    damaged = b"\0" * 4_096 + log.read_bytes()[4_096:]
    log.write_bytes(damaged)
    assert cli("status").exit_code == 4
    result = cli("restore", "--from", "out/log.db", "--yes")
    assert result.exit_code == 0, result.output
    assert "nobody can say what came after the backup" in result.output
    (aside,) = [name for name in names(shop / ".everlog") if name.startswith("log.db.before")]
    assert (shop / ".everlog" / aside).read_bytes() == damaged
    assert cli("restore", "loyalty", "--yes").exit_code == 0
    worked(start, orders=0)


def test_the_wal_and_the_bell_of_the_old_file_do_not_reach_the_new_one(shop: Path, cli: Cli, start: Start, backup: Path) -> None:
    worker = start("run", "shop:loyalty")
    worker.wait_for("is running")
    publish(cli, "cy", "dan")
    worker.wait_for("rewarded")
    worker.wait_for("rewarded")
    worker.end(signal.SIGKILL)
    assert (shop / ".everlog/loyalty.db-wal").stat().st_size
    assert cli("restore", "loyalty", "--from", "out/loyalty.db", "--yes").exit_code == 0
    assert [name for name in names(shop / ".everlog") if name.startswith("loyalty.db.before") and name.endswith("-wal")]
    worked(start, orders=3)


def test_where_there_is_no_file_any_more_the_backup_becomes_one(shop: Path, cli: Cli, start: Start, backup: Path) -> None:
    shutil.rmtree(shop / ".everlog")
    for arguments in (("--from", "out/log.db"), ("loyalty", "--from", "out/loyalty.db")):
        result = cli("restore", *arguments, "--yes")
        assert result.exit_code == 0, result.output
    worked(start, orders=0)


def test_nothing_changes_without_a_yes(shop: Path, cli: Cli, backup: Path) -> None:
    before = {name: (shop / ".everlog" / name).read_bytes() for name in names(shop / ".everlog") if name.endswith(".db")}
    unasked = cli("restore", "loyalty", "--from", "out/loyalty.db", stdin="y\n")
    assert (unasked.exit_code, "--yes" in unasked.stderr) == (1, True)
    asked = on_terminal(["restore", "--from", "out/log.db"], columns=200, typed="n\n")
    assert any("Put the log back so?" in line for line in asked)
    assert asked[-1].endswith("everlog: nothing was changed")
    assert {name: (shop / ".everlog" / name).read_bytes() for name in before} == before
    assert not [name for name in names(shop / ".everlog") if "restoring" in name or "before" in name]


def test_a_file_in_use_is_not_replaced_also_by_a_stopped_process(shop: Path, cli: Cli, start: Start, backup: Path) -> None:
    worker = start("run", "shop:loyalty")
    worker.wait_for("is running")
    worker.send(signal.SIGSTOP)
    try:
        for arguments in (("--from", "out/log.db"), ("loyalty", "--from", "out/loyalty.db"), ("loyalty",)):
            result = cli("restore", *arguments, "--yes")
            assert (result.exit_code, "stop whatever runs on it" in result.stderr) == (1, True), result.output
    finally:
        worker.send(signal.SIGCONT)
    assert worker.end(signal.SIGTERM) == 0
    assert not [name for name in names(shop / ".everlog") if "restoring" in name or "before" in name]


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def _strange(path: Path) -> None:
    path.write_text("my diary")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _in_use(path: Path) -> None:
    path.with_name(path.name + "-wal").write_bytes(b"x")


def _of_the_log(path: Path) -> None:
    shutil.copy(path.with_name("log.db"), path)


@pytest.mark.parametrize(
    ("spoil", "said", "code"),
    [
        (_cut, "damaged", 1),
        (_flip, "damaged", 1),
        (
            _strange,
            "is no store of Everlog (not a SQLite file, or its header is damaged): it was not touched; give the copy that",
            4,
        ),
        (_empty, "is empty", 4),
        (Path.unlink, "there is no file", 1),
        (_in_use, "has a WAL beside it", 1),
        (_of_the_log, "expected a store of Everlog, found a log of Everlog", 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).strip("_"),
)
def test_what_is_no_whole_backup_of_a_store_is_refused(
    shop: Path, cli: Cli, backup: Path, spoil: Callable[[Path], None], said: str, code: int
) -> None:
    before = (shop / ".everlog/loyalty.db").read_bytes()
    spoil(backup / "loyalty.db")
    result = cli("restore", "loyalty", "--from", "out/loyalty.db", "--yes")
    assert (result.exit_code, said in result.stderr) == (code, True), result.output
    assert (shop / ".everlog/loyalty.db").read_bytes() == before
    assert not [name for name in names(shop / ".everlog") if "restoring" in name or "before" in name]


def test_what_belongs_to_others_is_refused(shop: Path, cli: Cli, backup: Path) -> None:
    of_another_app = cli("restore", "billing", "--from", "out/loyalty.db", "--yes")
    assert of_another_app.exit_code == 1
    assert f"the store {shop}/out/loyalty.db belongs to app 'loyalty', and this command names 'billing'" in of_another_app.stderr
    elsewhere = ("--log-url", f"sqlite:{shop}/other/log.db")
    assert cli("publish", "shop", "shop.order_placed/1", "--data", '{"order": "1", "customer": "a"}', *elsewhere).exit_code == 0
    of_another_log = cli("restore", "loyalty", "--from", "out/loyalty.db", "--yes", *elsewhere)
    assert (of_another_log.exit_code, "belongs to log" in of_another_log.stderr) == (1, True), of_another_log.output


def test_a_folder_is_no_backup_and_the_copy_in_it_is_named(shop: Path, cli: Cli, backup: Path) -> None:
    of_log, of_store = cli("restore", "--from", "out", "--yes"), cli("restore", "loyalty", "--from", "out", "--yes")
    assert (of_log.exit_code, of_store.exit_code) == (1, 1)
    assert (
        f"{backup} is a folder: give the copy of the log that `everlog backup` has made in it, {backup}/log.db" in of_log.stderr
    )
    assert f"{backup}/loyalty.db" in of_store.stderr
    without = cli("restore", "billing", "--from", "out", "--yes")
    assert without.stderr.rstrip().endswith("has made in it")


def test_a_store_in_the_place_of_a_log_is_named_as_what_it_is(shop: Path, cli: Cli, backup: Path) -> None:
    wrong = cli("status", "--log-url", "sqlite:.everlog/loyalty.db")
    assert (wrong.exit_code, "expected a log of Everlog, found a store of Everlog" in wrong.stderr) == (4, True), wrong.stderr
    assert "give the file of the log (log.db" in wrong.stderr


def test_a_log_that_was_lost_is_not_made_anew_by_an_app_that_worked_with_it(
    shop: Path, cli: Cli, start: Start, backup: Path
) -> None:
    for side in ("", "-wal", "-shm", "-bell"):
        (shop / f".everlog/log.db{side}").unlink(missing_ok=True)
    refused = cli("run", "shop:loyalty")
    assert (refused.exit_code, "No log was made" in refused.stderr) == (4, True), refused.output
    assert not (shop / ".everlog/log.db").exists()
    result = cli("restore", "--from", "out/log.db", "--yes")
    assert result.exit_code == 0, result.output
    assert cli("restore", "loyalty", "--yes").exit_code == 0
    publish(cli, "cyd")
    worked(start, orders=1)


def test_a_log_that_was_made_in_the_place_of_a_lost_one_is_moved_aside(shop: Path, cli: Cli, backup: Path) -> None:
    for side in ("", "-wal", "-shm", "-bell"):
        (shop / f".everlog/log.db{side}").unlink(missing_ok=True)
    publish(cli, "cyd", "dan")
    wrong = cli("verify", "--app", "loyalty")
    assert (wrong.exit_code, "store of loyalty: it belongs to log" in wrong.output) == (1, True), wrong.output
    result = cli("restore", "--from", "out/log.db", "--yes")
    assert result.exit_code == 0, result.output
    assert "IT IS ANOTHER LOG" in result.output
    assert "shop.orders: 2 events since" in result.output
    assert len([name for name in names(shop / ".everlog") if name.startswith("log.db.before-")]) == 1
    assert cli("restore", "loyalty", "--yes").exit_code == 0
    assert "nothing is wrong" in cli("verify", "--app", "loyalty").output


def test_it_says_what_it_has_to_be_told(shop: Path, cli: Cli) -> None:
    nothing = cli("restore")
    assert (nothing.exit_code, "expected the APP" in nothing.stderr) == (2, True), nothing.stderr
    server = cli("restore", "--from", "x.db", "--log-url", "memory:", "--yes")
    assert (server.exit_code, "with the means of that server" in server.stderr) == (4, True)


def test_files_that_fit_together_are_left_as_they_are(shop: Path, cli: Cli, backup: Path) -> None:
    before = (shop / ".everlog/loyalty.db").read_bytes()
    result = cli("restore", "loyalty")
    assert (result.exit_code, "fit together: nothing was changed" in result.output) == (0, True), result.output
    assert (shop / ".everlog/loyalty.db").read_bytes() == before


STEPS = ["the file is renamed", "its WAL is renamed", "its index is renamed", "the copy gets the name", "the bell begins anew"]


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_whatever_is_killed_nobody_opens_what_is_half_done_and_again_does_the_rest(
    shop: Path, cli: Cli, start: Start, backup: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    worker = start("run", "shop:loyalty")
    worker.wait_for("is running")
    worker.end(signal.SIGKILL)  # so that there is a WAL to be moved
    rename, ring = Path.rename, Bell.ring
    steps = iter(STEPS)

    def renaming(self: Path, target: Path) -> Path:
        if next(steps) == STEPS[step]:
            raise KeyboardInterrupt
        return rename(self, target)

    def ringing(self: Bell, number: int) -> None:
        if number == 0 and next(steps) == STEPS[step]:
            raise KeyboardInterrupt
        ring(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", renaming)
        patch.setattr(Bell, "ring", ringing)
        cli("restore", "loyalty", "--from", "out/loyalty.db", "--yes")
    assert list(steps) == STEPS[step + 1 :]
    if step:
        refused = start("run", "shop:loyalty")
        assert (refused.end(), "acknowledged data is missing" in refused.text) == (1, True), refused.text
    result = cli("restore", "loyalty", "--from", "out/loyalty.db", "--yes")
    assert result.exit_code == 0, result.output
    worked(start, orders=1)


def test_a_restore_that_was_killed_before_it_told_the_log_is_done_by_the_next(
    shop: Path, cli: Cli, start: Start, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for left in (shop / ".everlog").glob("loyalty.db*"):
        left.unlink()
    assert start("run", "shop:loyalty").end() == 4

    async def dead(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mending, "publish_reports", dead)
        assert "incarnation 2" not in cli("restore", "loyalty", "--yes").output
    again = cli("restore", "loyalty", "--yes")
    assert (again.exit_code, "its store is incarnation 3 now" in again.output) == (0, True), again.output
    worked(start, orders=2)


def test_what_is_put_where_nothing_is_moves_nothing_aside(shop: Path, cli: Cli, backup: Path) -> None:
    empty = cli("restore", "--from", "out/log.db", "--yes", "--log-url", "sqlite:elsewhere/log.db")
    assert f"out/log.db is put at {shop}/elsewhere/log.db, where nothing is" in empty.output, empty.output
    assert "moved aside" not in empty.output
