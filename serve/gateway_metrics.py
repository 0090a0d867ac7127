"""Counters and gauges in Prometheus' form, one registry a gateway."""

import uuid
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from serve.replica_pool import ReplicaPool

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_POOL_GAUGES = {
    "queue": "images that wait",
    "in_hand": "images being drawn",
    "remaining_steps": "steps still to do, waiting ones included",
    "replicas": "replicas that answer",
    "batch": "images in running batches",
    "full_batch_steps_per_second": "of one replica, as it warmed up",
    "steps": "steps done by the replicas there are",
    "loaded_bytes": "weights in memory",
    "retries": "drawings begun anew on another replica",
}


class _LabelledRegistry(Collector):
    """A registry's metrics, each with the gateway that they are of.

    Every host's proxy hands a scrape to one of the gateways. By the label one gateway that is read
    at several hosts counts once, and several gateways behind one host's proxy stay apart.
    """

    def __init__(self, registry: CollectorRegistry, gateway: str) -> None:
        self._registry, self._gateway = registry, gateway

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                Sample(
                    sample.name,
                    {**sample.labels, "gateway": self._gateway},
                    sample.value,
                    sample.timestamp,
                    sample.exemplar,
                )
                for sample in metric.samples
            ]
            yield metric


class Metrics:
    """What this gateway saw."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._labelled = _LabelledRegistry(registry, uuid.uuid4().hex[:8])
        self.requests = Counter(
            "dreambooth_requests",
            "answers by route and status",
            ["route", "status"],
            registry=registry,
        )
        self.refusals = Counter(
            "dreambooth_refusals", "refusals by reason", ["reason"], registry=registry
        )
        self.images = Counter(
            "dreambooth_images", "images handed out", ["model"], registry=registry
        )
        self.latency = Histogram(
            "dreambooth_image_seconds", "from order to image", ["model"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_preview = Histogram(
            "dreambooth_first_preview_seconds", "from order to the first preview",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.jobs = Gauge("dreambooth_jobs", "jobs this gateway has in hand", registry=registry)
        self._pool_gauges = {
            name: Gauge(f"dreambooth_{name}", about, ["pool"], registry=registry)
            for name, about in _POOL_GAUGES.items()
        }

    def set_pool_gauges(self, pool: ReplicaPool) -> None:
        """Set a pool's gauges to what it is now."""
        admission, replica_statuses = pool.admission, pool.statuses
        gauge_values = {
            "queue": len(admission.queue),
            "in_hand": len(admission.in_hand),
            "remaining_steps": admission.remaining_steps,
            "replicas": len(replica_statuses),
            "batch": sum(r.active for r in replica_statuses),
            "full_batch_steps_per_second": admission.steps_per_s,
            "steps": sum(r.steps_done for r in replica_statuses),
            "loaded_bytes": sum(r.loaded_bytes for r in replica_statuses),
            "retries": pool.retries,
        }
        for gauge_name, gauge_value in gauge_values.items():
            self._pool_gauges[gauge_name].labels(pool.name).set(gauge_value)

    def format_prometheus(self) -> bytes:
        """All of it, with the label `gateway`."""
        return generate_latest(self._labelled)
