import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from torch.distributed import DistNetworkError

from dreambooth_ray.errors import ConfigError, DataError, DreamBoothError, StorageError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import restarts
from dreambooth_ray.training.restarts import (
    RestartPolicy,
    RestartRecorder,
    describe_failure_cause,
    is_infrastructure_failure,
    read_restarts,
)
from dreambooth_ray.training.worker_messages import read_new_messages

DEAD = ActorDiedError()
LOST_PEER = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:31337")
BUG = ValueError("operands of shape (2, 3)")


@pytest.mark.parametrize("failure", [ConfigError("a"), DataError("b")])
def test_what_a_person_has_to_mend_is_never_tried_again(failure: Exception) -> None:
    assert not RestartPolicy(3).should_restart([DEAD, failure], 5)


def test_an_exception_of_the_step_ends_the_run_when_it_comes_a_second_time() -> None:
    policy = RestartPolicy(9)
    assert policy.should_restart([BUG], 5)
    assert policy.should_restart([KeyError("other")], 5)
    # Whatever numbers it names, and however far the run came meanwhile.
    assert not policy.should_restart([ValueError("operands of shape (4, 7)")], 500)


def test_an_own_error_without_a_kind_is_tried_once_more() -> None:
    policy = RestartPolicy(9)
    assert policy.should_restart([DreamBoothError("odd")], 0)
    assert not policy.should_restart([DreamBoothError("odd")], 0)


@pytest.mark.parametrize(
    "failure",
    [
        DEAD,
        LOST_PEER,
        StorageError("away"),
        WorkerHealthCheckFailedError("no answer", DEAD),
        DistNetworkError("no route"),
    ],
)
def test_outages_count_by_attempts_without_progress(failure: Exception) -> None:
    policy = RestartPolicy(2)
    assert is_infrastructure_failure(failure)
    assert [policy.should_restart([failure], step) for step in (0, 0)] == [True, True]
    assert [policy.should_restart([failure], step) for step in (10, 10)] == [True, True]
    assert not policy.should_restart([failure], 10)


def test_no_restarts_are_made_where_none_are_wanted() -> None:
    assert not RestartPolicy(0).should_restart([DEAD], 5)


def test_the_cause_is_the_death_and_not_what_others_had_of_it() -> None:
    assert describe_failure_cause([LOST_PEER, DEAD]).startswith("a worker died (ActorDiedError)")
    assert describe_failure_cause([BUG]) == "ValueError: operands of shape (2, 3)"
    assert describe_failure_cause([LOST_PEER]).startswith("RuntimeError: [gloo")
    assert (
        describe_failure_cause([StorageError("s3://b does not\nanswer")])
        == "s3://b does not answer"
    )


def test_restarts_are_written_down_and_said() -> None:
    run = Store("memory://restarts")
    RestartRecorder(run, 3, lambda: 7.0).should_restart([DEAD])
    recorder = RestartRecorder(run, 3, lambda: 8.0)
    assert recorder.should_restart([BUG])
    assert not recorder.should_restart([BUG])
    restarts = read_restarts(run)
    assert [(r.attempt, r.step, r.at_s) for r in restarts] == [(2, 0, 7.0), (3, 0, 8.0)]
    messages = read_new_messages(run, set())
    assert len(messages) == 2
    assert messages[1] == (
        "restart: attempt 3 goes on from step 0, because ValueError: operands of shape (2, 3)"
    )


def test_a_restart_that_others_decide_names_the_newest_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A host is taken away: nothing failed, and checkpoints have come since the last failure."""
    steps = [50]
    monkeypatch.setattr(restarts, "committed_steps", lambda run: steps)
    run = Store("memory://decided-elsewhere")
    recorder = RestartRecorder(run, 3, lambda: 7.0)
    assert recorder.should_restart([DEAD])
    steps.append(150)
    recorder.record_restart("its host was taken away")
    assert [restart.step for restart in read_restarts(run)] == [50, 150]


def test_a_defect_is_not_tried_again_but_beside_an_outage() -> None:
    for defect in (TypeError("x"), ImportError("no module"), NotImplementedError("x")):
        assert not RestartPolicy(3).should_restart([defect], 0)
        assert RestartPolicy(3).should_restart([defect, StorageError("gone")], 0)
    assert RestartPolicy(3).should_restart([RuntimeError("x")], 0)
