"""The endpoint of `--metrics-port`: `/metrics`, `/healthz` and `/readyz`, from a thread of its own.

A handler may keep the event loop for its whole time limit; whoever asks meanwhile whether the process is alive must not kill it for that.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, cast

from everlog.errors import StartRefused
from everlog.observe.health import Health
from everlog.observe.installed import check_installed
from everlog.observe.meters import Snapshot

_MOST_AT_ONCE: Final = 16
"""Who asks while so many are being answered is turned away: a slow reader must not cost a thread for each of its attempts."""
_SLOW_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.25
_PLAIN: Final = "text/plain; charset=utf-8"

_logger: Final = logging.getLogger("everlog")


class Endpoint:
    """Answers from the moment it is made until it is closed.

    Args:
        host, port: Where. Port 0 is one that the system chooses.
        snapshot: Returns the numbers.
        health: Says how the process is.

    Raises:
        StartRefused: The address cannot be used, or `prometheus_client` is not there.
    """

    def __init__(self, host: str, port: int, snapshot: Callable[[], Snapshot], health: Health) -> None:
        check_installed()
        from everlog.observe.exposition import Exposition  # its package is an extra

        shown = f"[{host}]" if ":" in host else host
        try:
            self._server = _Server(host, port, Exposition(snapshot).text, health)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise StartRefused(
                f"metrics cannot be served on {shown}:{port} ({reason.lower()}): see what else listens there, or give another "
                f"--metrics-port or --metrics-host; 0 is a port that is free"
            ) from error
        self.url: Final = f"http://{shown}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[_LOOK_EVERY_S], name="metrics", daemon=True)
        self._thread.start()
        _logger.info("metrics are served on %s/metrics", self.url)

    def close(self) -> None:
        """Answer no more. Idempotent."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, page: Callable[[str], tuple[bytes, str]], health: Health) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.page = page
        self.health = health
        self._places = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__((host, port), _Answer)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 as its base has it
        _logger.debug("a request for metrics was broken off")


class _Answer(BaseHTTPRequestHandler):
    timeout = _SLOW_S

    def do_GET(self) -> None:
        """Answer with a page."""
        status, body, content_type = self._answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 as its base calls it

    def _answer(self, path: str) -> tuple[int, bytes, str]:
        server = cast("_Server", self.server)
        match path:
            case "/metrics":
                return 200, *server.page(self.headers.get("Accept", ""))
            case "/healthz":
                return _said(server.health.not_well())
            case "/readyz":
                return _said(server.health.not_ready())
            case _:
                return 404, b"there are /metrics, /healthz and /readyz\n", _PLAIN

    def version_string(self) -> str:
        return "everlog"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 as its base has it
        """Log nothing: somebody asks every few seconds."""


def _said(wrong: str | None) -> tuple[int, bytes, str]:
    return (200, b"ok\n", _PLAIN) if wrong is None else (503, f"{wrong}\n".encode(), _PLAIN)
