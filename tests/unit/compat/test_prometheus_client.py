from prometheus_client import CollectorRegistry, Counter, Gauge

from dreambooth_ray.compat.prometheus_client import MetricFamily, describe_metrics
from tests.unit.compat.private_api import find_private


def test_prometheus_client_still_has_what_is_used_of_it() -> None:
    user = "prometheus_client.py"
    (registry,) = find_private("prometheus-client", "prometheus_client", "REGISTRY", user=user)
    gauge = Gauge("warmth", "how warm", ["room"], registry=None)
    for holder, name in ((registry, "_names_to_collectors"), (gauge, "_labelnames")):
        assert hasattr(holder, name), f"prometheus_client has no {name}; see compat/{user}"


def test_metrics_without_a_value_are_described_too() -> None:
    registry = CollectorRegistry()
    Counter("requests", "asked", ["path", "status"], registry=registry)
    Gauge("waiting", "not yet served", registry=registry)
    assert list(describe_metrics(registry)) == [
        MetricFamily("requests", "counter", ("path", "status"), "asked"),
        MetricFamily("waiting", "gauge", (), "not yet served"),
    ]
