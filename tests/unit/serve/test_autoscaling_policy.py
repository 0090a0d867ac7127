from types import SimpleNamespace

from serve.autoscaling_policy import StepsPolicy, compute_replica_count


def test_replicas_by_steps() -> None:
    assert [compute_replica_count(s, 400) for s in (0, 1, 400, 401, 4000)] == [0, 1, 1, 2, 10]


def test_the_policy_sums_over_replicas_and_waits_for_word() -> None:
    policy = StepsPolicy(target_steps=100)
    context = SimpleNamespace(
        aggregated_metrics={"remaining_steps": {"a": 150.0, "b": 120.0}},
        current_num_replicas=2,
        target_num_replicas=2,
    )
    assert policy(context) == (3, {})
    for running, target in ((1, 1), (0, 1), (0, 0)):
        silent = SimpleNamespace(
            aggregated_metrics={}, current_num_replicas=running, target_num_replicas=target
        )
        assert policy(silent) == (target, {})
    idle = SimpleNamespace(
        aggregated_metrics={"remaining_steps": {"a": 0.0}},
        current_num_replicas=1,
        target_num_replicas=1,
    )
    assert policy(idle) == (0, {})
