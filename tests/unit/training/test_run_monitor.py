from dreambooth_ray.config.machines import ClusterConfig, Span
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.run_monitor import PatienceTimer, describe_missing_machines
from dreambooth_ray.training.worker_messages import post_message, read_new_messages


def test_what_is_missing_is_named() -> None:
    cluster = ClusterConfig(workers=Span(min=3, max=4))
    assert describe_missing_machines(cluster, {"CPU": 3.0}, 2) is None
    assert "at least 3 CPUs" in str(describe_missing_machines(cluster, {"CPU": 2.0}, 1))
    assert "GPUs" in str(
        describe_missing_machines(ClusterConfig(workers=1, gpus=True), {"CPU": 8.0}, 1)
    )


def test_a_wait_ends_when_nothing_comes_back() -> None:
    wait = PatienceTimer(patience_s=10)
    assert not wait.is_over(True, now_s=0)
    assert not wait.is_over(False, now_s=9)
    assert not wait.is_over(True, now_s=11)
    assert wait.is_over(True, now_s=21)


def test_messages_are_read_once_and_in_order() -> None:
    run, read_names = Store("memory://notices"), set[str]()
    post_message(run, "one")
    post_message(run, "two")
    assert read_new_messages(run, read_names) == ["one", "two"]
    assert read_new_messages(run, read_names) == []
