"""Every alert rule, by promtool: when it fires, and when it has to stay quiet."""

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.integration.test_k8s import resources

pytestmark = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool (Debian: prometheus) is missing"
)
Series = dict[str, str]


@dataclass(frozen=True)
class Case:
    """Series by name, a sample a minute, and the labels with which an alert fires by then.

    values as promtool has them: 0+60x30 begins at 0 and rises by 60 thirty times
    """

    alert: str
    series: Series
    fires: dict[str, str] | None
    minutes: int = 30
    labels: dict[str, str] = field(default_factory=dict)


def requests(status: str, values: str, gateway: str = "g1", pod: str = "a") -> Series:
    labels = f'gateway="{gateway}",route="/v1/images/generations",status="{status}",pod="{pod}"'
    return {f"dreambooth_requests_total{{{labels}}}": values}


def pool(name: str, values: str, gateway: str = "g1", pod: str = "a") -> Series:
    return {f'dreambooth_{name}{{gateway="{gateway}",pool="Replica",pod="{pod}"}}': values}


def refusals(reason: str, values: str) -> Series:
    return {f'dreambooth_refusals_total{{gateway="g1",reason="{reason}"}}': values}


CLUSTER = 'ray_io_cluster="train"'
PAGE, TICKET = {"severity": "page"}, {"severity": "ticket"}
REPLICA = {"pool": "Replica"}
OF_CLUSTER = {"ray_io_cluster": "train"}
CASES = [
    Case("DreamboothEndpointErrors",
         requests("200", "0+60x30") | requests("500", "0+6x30"), PAGE),
    Case("DreamboothEndpointErrors",
         requests("200", "0+60x30") | requests("500", "0+1x30"), None),
    # Refusals by design page nobody, however many they are.
    Case("DreamboothEndpointErrors",
         requests("200", "0+60x30") | requests("503", "0+600x30"), None),
    Case("DreamboothEndpointAway", pool("replicas", "0x30") | pool("queue", "3x30"),
         PAGE | REPLICA),
    # Scaled to zero, with nobody waiting.
    Case("DreamboothEndpointAway", pool("replicas", "0x30") | pool("queue", "0x30"), None),
    Case("DreamboothEndpointAway", pool("replicas", "1x30") | pool("queue", "3x30"), None),
    Case("DreamboothEndpointQueue", pool("queue", "101x30"), TICKET | REPLICA),
    # One gateway, read at two hosts, is one gateway; two of them wait together.
    Case("DreamboothEndpointQueue",
         pool("queue", "60x30") | pool("queue", "60x30", pod="b"), None),
    Case("DreamboothEndpointQueue",
         pool("queue", "60x30") | pool("queue", "60x30", "g2", "b"), TICKET | REPLICA),
    Case("DreamboothEndpointQueue", pool("queue", "101x30"), None, minutes=5),
    Case("DreamboothEndpointRefuses", refusals("overloaded", "0+60x40"),
         TICKET | {"reason": "overloaded"}, 40),
    # What a caller did wrong is the caller's business.
    Case("DreamboothEndpointRefuses", refusals("invalid_value", "0+60x40"), None, 40),
    Case("DreamboothReplicaUnhealthy",
         {'ray_serve_deployment_replica_healthy{deployment="Replica",replica="r"}': "0x30"},
         TICKET | {"deployment": "Replica", "replica": "r"}),
    Case("DreamboothReplicaUnhealthy",
         {'ray_serve_deployment_replica_healthy{deployment="Replica",replica="r"}': "1x30"}, None),
    Case("DreamboothWorkersDie",
         {f"ray_node_manager_unexpected_worker_failure_total{{{CLUSTER}}}": "0+1x30"},
         TICKET | OF_CLUSTER),
    Case("DreamboothWorkersDie",
         {f"ray_node_manager_unexpected_worker_failure_total{{{CLUSTER}}}": "7x30"}, None),
    Case("DreamboothOutOfMemory",
         {f"ray_memory_manager_worker_eviction_total{{{CLUSTER}}}": "0x20 1x10"},
         PAGE | OF_CLUSTER),
    Case("DreamboothOutOfMemory",
         {f"ray_memory_manager_worker_eviction_total{{{CLUSTER}}}": "1x30"}, None),
    Case("DreamboothGpuIdle",
         {f"ray_node_gpus_utilization{{{CLUSTER}}}": "1x60",
          f"ray_node_gpus_available{{{CLUSTER}}}": "1x60"}, TICKET | OF_CLUSTER, 60),
    Case("DreamboothGpuIdle",
         {f"ray_node_gpus_utilization{{{CLUSTER}}}": "80x60",
          f"ray_node_gpus_available{{{CLUSTER}}}": "1x60"}, None, 60),
    Case("DreamboothDiskFills",
         {f'ray_node_disk_free{{{CLUSTER},instance="a"}}': "4000000000x30"},
         TICKET | OF_CLUSTER | {"instance": "a"}),
    Case("DreamboothDiskFills",
         {f'ray_node_disk_free{{{CLUSTER},instance="a"}}': "6000000000x30"}, None),
]  # fmt: skip


RUNBOOK = Path(__file__).parents[2] / "k8s" / "RUNBOOK.md"


def read_rules() -> dict[str, object]:
    rule = next(r for r in resources("serve-gpu") if r["kind"] == "PrometheusRule")
    return dict(rule["spec"])


def test_every_alert_has_its_page_and_cases_that_fire_and_that_do_not() -> None:
    alerts = [
        rule["alert"]
        for group in read_rules()["groups"]  # type: ignore[attr-defined]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert re.findall("^## (.+)$", RUNBOOK.read_text(), re.MULTILINE) == alerts
    assert {case.alert for case in CASES if case.fires} == set(alerts)
    assert {case.alert for case in CASES if not case.fires} == set(alerts)


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    rules = read_rules()
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    written = {
        rule["alert"]: rule
        for group in rules["groups"]  # type: ignore[attr-defined]
        for rule in group["rules"]
        if "alert" in rule
    }
    tests = []
    for case in CASES:
        # promtool fills templates in; what they say is the rule's business, so it is taken off.
        for key in ("summary", "description"):
            written[case.alert]["annotations"][key] = key
        expected = [{"exp_labels": case.fires, "exp_annotations":
                     {"summary": "summary", "description": "description"}}]  # fmt: skip
        tests.append({
            "interval": "1m",
            "name": f"{case.alert} {case.series}",
            "input_series": [{"series": s, "values": v} for s, v in case.series.items()],
            "alert_rule_test": [{
                "eval_time": f"{case.minutes}m", "alertname": case.alert,
                "exp_alerts": expected if case.fires else [],
            }],
        })  # fmt: skip
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(document))
    result = subprocess.run(
        ["promtool", "test", "rules", "tests.yaml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
