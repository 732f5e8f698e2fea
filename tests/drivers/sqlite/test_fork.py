"""A fork of a process that has a file open: it is told so, and harms nobody."""

from __future__ import annotations

import fcntl
import os
import warnings
from pathlib import Path

from tests.drivers.sqlite.test_database import KIND, numbers, opened

from everlog.drivers.sqlite.connection import check_header, look_into
from everlog.errors import FilePlace


async def test_a_forked_child_may_not_open_it_and_does_not_count_as_one_that_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    refused, waits = os.pipe(), os.pipe()
    async with opened(path) as made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that the writer's thread is not in the child is the point
            child = os.fork()
        if child == 0:
            os.close(waits[1])
            for opening in (lambda: check_header(path, KIND), lambda: look_into(path)):
                try:
                    opening()
                except FilePlace as error:
                    os.write(refused[1], b"y" if "after the fork and not before" in str(error) else b"n")
            os.close(refused[1])
            os.read(waits[0], 1)  # lives until the parent has looked
            os._exit(0)
        await made.submit(1)
    os.close(refused[1])
    assert os.read(refused[0], 1) + os.read(refused[0], 1) == b"yy"
    fd = os.open(path.with_name("a.db-open"), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for one in (fd, refused[0], waits[0], waits[1]):
        os.close(one)
    os.waitpid(child, 0)  # noqa: ASYNC222 - it ends at once
    async with opened(path) as made:
        assert numbers(made) == [1]
