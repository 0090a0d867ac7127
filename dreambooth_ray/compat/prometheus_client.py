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
    for collector in dict.fromkeys(registry._names_to_collectors.values()):
        metric: Any = collector
        (family,) = metric.describe()
        yield MetricFamily(
            family.name, family.type, tuple(metric._labelnames), family.documentation
        )
