"""Whether what metrics need is there: it is an extra."""

from __future__ import annotations

from importlib.util import find_spec

from everlog.errors import StartRefused


def check_installed() -> None:
    """Refuse where the package that writes metrics is missing.

    Raises:
        StartRefused: It is missing.
    """
    if find_spec("prometheus_client") is None:
        raise StartRefused("metrics need the package prometheus_client: pip install 'everlog[metrics]'")
