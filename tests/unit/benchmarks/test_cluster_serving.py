from benchmarks.cluster_serving import format_table, make_serve_config
from benchmarks.cluster_throughput import ClusterSetting


def test_the_endpoint_may_grow_to_what_there_is() -> None:
    setting = ClusterSetting("10.0.0.1:6379", "s3://b/c", gpus=True)
    config = make_serve_config(setting, 5)
    assert (config.replicas.minimum, config.replicas.maximum, config.replicas.gpus) == (1, 5, True)
    assert config.replicas.target_steps == 400  # the product's own
    assert config.storage.uri == "s3://b/c"


def test_a_row_has_offered_load_beside_latency() -> None:
    case = {"phase": "3 replicas", "replicas": [3, 3], "offered_per_s": 2.5, "images_per_s": 2.4,
            "p50_s": 0.5, "p95_s": 1.25, "failures": 0}  # fmt: skip
    row = format_table({"cases": [case]}).splitlines()[-1]
    assert row == "| 3 replicas | 3 -> 3 | 2.50 | 2.40 | 0.50 | 1.25 | 0 |"
