"""Whether actors and workers find a place together."""

import pytest

from dreambooth_ray.config.machines import ClusterConfig, CountRange
from dreambooth_ray.config.prior import PriorConfig
from dreambooth_ray.priors import prior_generation

CASES = [
    ({"CPU": 3.0}, PriorConfig(actors=4), ClusterConfig(workers=2), True),
    ({"CPU": 2.0}, PriorConfig(), ClusterConfig(workers=2), False),
    ({"CPU": 3.0}, PriorConfig(), ClusterConfig(workers=CountRange(min=1, max=3)), False),
    ({"CPU": 8.0, "GPU": 2.0}, PriorConfig(), ClusterConfig(workers=2, gpus=True), False),
    (
        {"CPU": 8.0, "GPU": 2.5},
        PriorConfig(num_gpus=0.5),
        ClusterConfig(workers=2, gpus=True),
        True,
    ),
    ({}, PriorConfig(), ClusterConfig(), False),
]


@pytest.mark.parametrize(("free", "prior_config", "cluster", "has_room"), CASES)
def test_there_is_room_for_the_least_actors_and_every_worker(
    free: dict[str, float],
    prior_config: PriorConfig,
    cluster: ClusterConfig,
    has_room: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prior_generation.ray, "available_resources", lambda: free)
    assert prior_generation.cluster_has_room(prior_config, cluster) is has_room
