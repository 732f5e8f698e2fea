"""The numbers as Prometheus reads them. Imported where somebody asks for them: its package is an extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from everlog.observe.meters import BUILD_INFO, FAMILIES, Buckets, Family, Number, Snapshot


class Exposition(Collector):
    """Shows what is counted, each time that it is asked for.

    Args:
        snapshot: Returns it; called from any thread.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._build = Number(BUILD_INFO.name, (version("everlog"),), 1)

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without their values."""
        return (_metric(family, (), ()) for family in FAMILIES)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, also those that have no value yet."""
        snapshot = self._snapshot()
        for family in FAMILIES:
            numbers = [number for number in [*snapshot.numbers, self._build] if number.name == family.name]
            yield _metric(family, numbers, [one for one in snapshot.histograms if one.name == family.name])

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return a page of it, in the format that an `Accept` header prefers, and the type of its content."""
        encode, content_type = choose_encoder(accept)
        registry = CollectorRegistry()
        registry.register(self)
        page: bytes = encode(registry)
        return page, content_type


def default_registry() -> CollectorRegistry:
    """Return the registry that `prometheus_client` shows by itself."""
    return REGISTRY


def _metric(
    family: Family, numbers: list[Number] | tuple[()], histograms: list[Buckets] | tuple[()]
) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    if family.kind == "histogram":
        metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        names = [*(f"{bound:g}" for bound in family.bounds), "+Inf"]
        for one in histograms:
            metric.add_metric(one.labels, list(zip(names, accumulate(one.counts), strict=True)), one.total)
        return metric
    made = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
        family.name, family.help, labels=family.labels
    )
    for number in numbers:
        made.add_metric(number.labels, number.value)
    return made
