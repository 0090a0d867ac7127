"""Of prometheus_client: the metrics of a registry, those without a value yet included.

Private: CollectorRegistry._names_to_collectors, MetricWrapperBase._labelnames.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry


@dataclass(frozen=True)
class MetricFamily:
    """One metric. kind: counter, gauge, histogram or summary."""

    name: str
    kind: str
    labels: tuple[str, ...]
    documentation: str


def describe_metrics(registry: CollectorRegistry) -> Iterator[MetricFamily]:
    """Every metric, in the order of registration."""
    for metric_collector in dict.fromkeys(registry._names_to_collectors.values()):
        untyped_collector: Any = metric_collector
        (metric_family,) = untyped_collector.describe()
        yield MetricFamily(
            metric_family.name,
            metric_family.type,
            tuple(untyped_collector._labelnames),
            metric_family.documentation,
        )
