"""What can be seen of an app at work: numbers for Prometheus and spans for OpenTelemetry.

Both are off unless somebody asks for them. Off, they cost a look per commit of a group, and nothing per event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everlog.observe.meters import Meters

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Meters", "prometheus"]


def prometheus(registry: CollectorRegistry | None = None) -> Meters:
    """Return meters that a registry of `prometheus_client` shows from now on, for `App.run(meters=…)`.

    For an application that shows a registry already. `Settings(metrics_port=…)` needs none of this.

    Args:
        registry: ``None`` is the default one of `prometheus_client`. A registry takes one of these.

    Raises:
        StartRefused: The package `prometheus_client` is not there.
    """
    from everlog.observe.installed import check_installed

    check_installed()
    from everlog.observe.exposition import Exposition, default_registry  # only who asks for metrics needs the package

    meters = Meters()
    (registry or default_registry()).register(Exposition(meters.snapshot))
    return meters
