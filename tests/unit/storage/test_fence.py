"""Which of several holders' writings count, from names alone."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.fence import CheckpointId, RunHistory
from dreambooth_ray.storage.store import Store

IDS = st.builds(CheckpointId, st.integers(1, 40), st.integers(0, 6))
TAKEOVERS = st.dictionaries(st.integers(2, 6), st.integers(0, 40)).map(lambda d: tuple(d.items()))


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def point_to(run: Store, *checkpoints: CheckpointId) -> None:
    for checkpoint in checkpoints:
        run.write(f"{checkpoint.name}.json", b"{}")


def test_what_a_followed_holder_writes_beyond_the_takeover_is_void(run: Store) -> None:
    point_to(run, CheckpointId(10, 1), CheckpointId(20, 1))
    assert fence.record_resumed_step(run, 2) == 20
    woken = CheckpointId(30, 1)
    point_to(run, woken)
    history = fence.read_history(run)
    assert (list(history.checkpoints), history.voided_checkpoints) == ([10, 20], [woken])
    point_to(run, CheckpointId(30, 2))
    assert fence.find_checkpoint(run, 30) == CheckpointId(30, 2)
    assert fence.read_history(run).newest_lease == 2
    with pytest.raises(CheckpointError, match="no checkpoint of step 40"):
        fence.find_checkpoint(run, 40)


def test_runs_without_numbers_go_on(run: Store) -> None:
    run.write("checkpoints/step-00000010.json", b"{}")
    run.write("checkpoints/step-00000010-0123456789ab/manifest.json", b"{}")
    assert fence.record_resumed_step(run, 4) == 10
    assert fence.find_checkpoint(run, 10).name == paths.checkpoint(10)
    assert run.names(paths.CHECKPOINTS)[-1] == "takeover-000004-step-00000010.json"


def test_a_look_for_what_is_new_sees_every_takeover(run: Store) -> None:
    point_to(run, *(CheckpointId(step, 1) for step in (10, 20, 30)))
    assert list(fence.read_history(run, after=10).checkpoints) == [20, 30]
    run.write(paths.takeover_file(2, 20), b"{}")
    assert list(fence.read_history(run, after=10).checkpoints) == [20]
    point_to(run, CheckpointId(30, 2))
    assert list(fence.read_history(run, after=20).checkpoints.values()) == [CheckpointId(30, 2)]


def test_the_first_holder_has_nobody_to_fence_off(run: Store) -> None:
    assert fence.record_resumed_step(run, 1) == 0
    assert run.names(paths.CHECKPOINTS) == []


@given(st.sets(IDS), TAKEOVERS)
def test_what_counts_is_one_a_step_and_never_beyond_a_later_takeover(
    pointers: set[CheckpointId], takeovers: tuple[tuple[int, int], ...]
) -> None:
    history = RunHistory(tuple(sorted(pointers)), takeovers)
    valid = set(history.checkpoints.values())
    assert valid | set(history.voided_checkpoints) == pointers
    assert not valid & set(history.voided_checkpoints)
    assert len(valid) == len({entry.step for entry in valid})
    for entry in valid:
        assert not any(n > entry.lease and entry.step > step for n, step in takeovers)
        same_step = [p for p in pointers if p.step == entry.step and p.lease > entry.lease]
        assert not any(history.is_valid(p.step, p.lease) for p in same_step)


@given(st.integers(0, 10**6 - 1), st.sampled_from(["metrics.jsonl", "end.json"]))
def test_each_holder_has_its_own_file_of_a_name(lease: int, name: str) -> None:
    noise = ["metrics-1.jsonl", "end-000002.jsonl", "other.json", f"{name}.partial"]
    assert fence.list_leases_of_file([fence.file_name_with_lease(name, lease), *noise], name) == [
        max(lease, 1)
    ]


def test_the_newest_holders_file_counts(run: Store) -> None:
    assert fence.read_file_of_highest_lease(run, "end.json") is None
    for lease in (1, 3):
        run.write(fence.file_name_with_lease("end.json", lease), str(lease).encode())
    assert fence.read_file_of_highest_lease(run, "end.json") == b"3"
    assert fence.read_file_of_highest_lease(run, "end.json", up_to_lease=2) == b"1"


def test_a_newer_lease_is_known(run: Store) -> None:
    assert not fence.has_newer_holder(run, 1)
    run.write("leases/000002.json", b"{}")
    assert fence.has_newer_holder(run, 1)
    assert not fence.has_newer_holder(run, 2)
