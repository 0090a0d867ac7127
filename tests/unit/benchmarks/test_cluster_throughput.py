import pytest

from benchmarks.cluster_throughput import ClusterSetting, choose_counts, run_cluster_benchmark
from dreambooth_ray.errors import ConfigError


def setting(*workers: int) -> ClusterSetting:
    return ClusterSetting("10.0.0.1:6379", "s3://b", workers=workers)


@pytest.mark.parametrize(
    ("workers", "devices", "counts"),
    [
        ((), 1, (1,)),
        ((), 3, (1, 2, 3)),
        ((), 8, (1, 2, 4, 8)),
        ((), 12, (1, 2, 4, 8, 12)),
        ((2, 4), 12, (1, 2, 4)),
    ],
)
def test_numbers_of_workers_go_up_to_what_there_is(
    workers: tuple[int, ...], devices: int, counts: tuple[int, ...]
) -> None:
    assert choose_counts(setting(*workers), devices) == counts


def test_more_workers_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="--workers=4: the cluster has 3 CPUs"):
        choose_counts(setting(4), 3)
    with pytest.raises(ConfigError, match="has no CPU"):
        choose_counts(setting(), 0)


def test_other_themes_have_no_cluster() -> None:
    with pytest.raises(ConfigError, match="bench sample has no --address; on a cluster there are"):
        run_cluster_benchmark("sample", setting())
