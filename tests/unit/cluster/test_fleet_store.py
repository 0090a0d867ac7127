"""Subjects that are put into queues, listed and cancelled."""

import time
from pathlib import Path

import pytest
import yaml

from cluster.fleet_store import FleetStore, parse_group_rank
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.queue.work_records import ended_mark_name
from tests.unit.cluster.added_subjects import Added


@pytest.fixture
def added(tmp_path: Path, tiny_model: Path, photos: Path) -> Added:
    return Added(tmp_path, tiny_model, photos)


def test_adding_that_was_cut_off_goes_on(added: Added) -> None:
    added.add({"id": "a"}, {"id": "b"})
    added.add({"id": "a"}, {"id": "b"}, {"id": "c", "priority": 7})
    assert sorted(added.waiting) == ["a", "b", "c"]
    assert added.waiting[0] == "c"
    assert sum("was added before" in line for line in added.lines) == 2
    with pytest.raises(ConfigError, match="every subject of the file is in the queue already"):
        added.add({"id": "a"}, {"id": "b"})
    with pytest.raises(ConfigError, match=r"'b' is in the queue .* with other settings"):
        added.add({"id": "d"}, {"id": "b", "priority": 1})


@pytest.mark.parametrize(
    ("subject", "overrides", "words"),
    [
        ({"id": "a", "overrides": ("train.lora.rank=32",)}, (), "run_id='a' is a run with another"),
        ({"id": "a", "owner": "bob"}, (), "'a' is in the queue already, .* with other settings"),
        ({"id": "b", "deadline": "2020-01-31T12:00Z"}, (), "deadline=2020-01-31T12:00Z has passed"),
        ({"id": "b"}, ("cluster.address=head",), "cluster.address=head: who takes .* RAY_ADDRESS"),
        ({"id": "b"}, ("storage.options.key=k",), "storage.options.key: .* AWS_ENDPOINT_URL"),
    ],
)
def test_what_can_t_wait_in_a_queue_is_refused_before_any_is_added(
    added: Added, subject: dict[str, object], overrides: tuple[str, ...], words: str
) -> None:
    added.add({"id": "a"})
    with pytest.raises(ConfigError, match=words):
        added.add({"id": "z"}, subject, overrides=overrides)
    assert added.waiting == ["a"]


def test_pages_go_through_all_groups(added: Added) -> None:
    subjects = [
        {"id": f"s{number}", "overrides": (f"train.lora.rank={1 + number % 3}",)}
        for number in range(7)
    ]
    added.add(*subjects, {"id": "alone", "overrides": ("train.accumulate=2",)})
    names: list[str] = []
    ids: list[str] = []
    while page := added.store.list_unfinished_works("waiting", names[-1] if names else "", 3):
        names += [f"{group}/{mark.name}" for group, mark in page]
        ids += [mark.id for _, mark in page]
        assert len(page) <= 3
    assert sorted(ids) == [*["alone"], *sorted(f"s{number}" for number in range(7))]
    assert names == sorted(names)
    for name in ids:
        assert added.store.cancel(name) == "cancelled"
    assert added.store.cancel("alone") == "over"
    ended = added.store.list_ended("", 5)
    last_group, last = ended[-1]
    assert len(ended) == 5
    assert len(added.store.list_ended(f"{last_group}/{ended_mark_name(last)}")) == 3
    with pytest.raises(ConfigError, match="no subject 'nobody'"):
        added.store.cancel("nobody")


def test_a_deadline_goes_into_the_record(added: Added) -> None:
    deadline = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    added.add({"id": "a", "deadline": deadline})
    ((group, _),) = added.store.list_unfinished_works("waiting")
    record = added.store.open_queue(group).read("a")
    assert record.deadline_s is not None
    assert record.deadline_s > time.time() + 3000
    assert yaml.safe_load(record.payload)["run_id"] == "a"


def test_where_no_queue_is_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no queue of subjects; .* `dreambooth fleet add"):
        FleetStore(str(tmp_path)).refuse_empty_storage()
    with pytest.raises(ConfigError, match="queue/fleet/other is no queue of this version"):
        parse_group_rank("other")
