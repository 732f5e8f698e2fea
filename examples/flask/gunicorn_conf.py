"""gunicorn with preload: the application is imported once, and each worker opens its own client behind the fork."""

from typing import Any

bind = "127.0.0.1:8000"
preload_app = True
workers = 2
worker_class = "gthread"
threads = 8


def post_fork(_server: Any, _worker: Any) -> None:
    from polls import client

    client.open()


def worker_exit(_server: Any, _worker: Any) -> None:
    from polls import client

    client.close()
