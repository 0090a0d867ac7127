from dreambooth_ray.config.machines import ClusterConfig, Span
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.run_monitor import Wait, missing
from dreambooth_ray.training.worker_messages import post, unread


def test_what_is_missing_is_named() -> None:
    cluster = ClusterConfig(workers=Span(min=3, max=4))
    assert missing(cluster, {"CPU": 3.0}, 2) is None
    assert "at least 3 CPUs" in str(missing(cluster, {"CPU": 2.0}, 1))
    assert "GPUs" in str(missing(ClusterConfig(workers=1, gpus=True), {"CPU": 8.0}, 1))


def test_a_wait_ends_when_nothing_comes_back() -> None:
    wait = Wait(patience_s=10)
    assert not wait.is_over(True, now=0)
    assert not wait.is_over(False, now=9)
    assert not wait.is_over(True, now=11)
    assert wait.is_over(True, now=21)


def test_notices_are_read_once_and_in_order() -> None:
    run, seen = Store("memory://notices"), set[str]()
    post(run, "one")
    post(run, "two")
    assert unread(run, seen) == ["one", "two"]
    assert unread(run, seen) == []
