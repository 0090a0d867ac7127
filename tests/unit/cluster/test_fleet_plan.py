from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet_plan import (
    FleetEntry,
    FleetQueue,
    FleetSubject,
    dump_configurations,
    load_fleet,
    run_queue,
)
from dreambooth_ray.errors import ConfigError


def entries(*who: tuple[str, int]) -> list[FleetEntry]:
    return [
        FleetEntry(FleetSubject(id=f"s{k}", photos="p", class_noun="robot", owner=o, priority=p))
        for k, (o, p) in enumerate(who)
    ]


def order(queue: FleetQueue, fails: frozenset[str] = frozenset()) -> list[str]:
    started: list[str] = []

    def start(entry: FleetEntry) -> str:
        started.append(entry.subject.id)
        return entry.subject.id

    run_queue(queue, start, lambda handles: next(iter(handles)),
          lambda handle: "broken" if handle in fails else None, lambda _: None)  # fmt: skip
    return started


def test_owners_take_turns_whoever_has_more() -> None:
    queue = FleetQueue(entries(("ann", 0), ("ann", 0), ("ann", 0), ("bob", 0), ("cid", 0)), 1, 0)
    assert order(queue) == ["s0", "s3", "s4", "s1", "s2"]


def test_priority_counts_within_an_owner_alone() -> None:
    queue = FleetQueue(entries(("ann", 0), ("ann", 5), ("bob", 1)), 1, 0)
    assert order(queue) == ["s1", "s2", "s0"]


def test_a_failed_subject_is_tried_again_and_given_up_in_the_end() -> None:
    queue = FleetQueue(entries(("ann", 0), ("bob", 0)), 1, 2)
    assert order(queue, frozenset({"s0"})).count("s0") == 3
    assert [e.state for e in queue.entries] == ["failed", "done"]
    assert queue.entries[0].note == "broken"


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_every_subject_is_done_once_and_no_owner_is_far_ahead(
    who: list[tuple[str, int]], parallel: int
) -> None:
    queue = FleetQueue(entries(*who), parallel, 0)
    started = order(queue)
    assert sorted(started) == sorted(e.subject.id for e in queue.entries)
    owner = {e.subject.id: e.subject.owner for e in queue.entries}
    owners = [owner[name] for name in started]
    for k in range(len(owners)):
        waiting = set(owners[k:])
        starts_so_far = {o: owners[:k].count(o) for o in waiting}
        assert starts_so_far[owners[k]] == min(starts_so_far.values())


FLEET = """
recipe: toy-robot
overrides: [train.steps=4]
subjects:
- {id: one, photos: p, class_noun: robot, owner: ann}
- {id: two, photos: q, class_noun: dog, overrides: [train.steps=8]}
"""


def test_a_file_becomes_configurations(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    fleet = load_fleet(path)
    steps = [fleet.config_of(s).train.steps for s in fleet.subjects]
    assert steps == [4, 8]
    assert set(dump_configurations(fleet)) == {"one", "two"}


def test_a_subjects_budget_takes_the_place_of_everybodys(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET.replace("train.steps=8", "train.images=40"))
    fleet = load_fleet(path)
    assert [fleet.config_of(s).train.steps for s in fleet.subjects] == [4, 10]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (FLEET.replace("id: two", "id: one"), "'one' is there twice"),
        (FLEET.replace("photos: q", "photo: q"), r"subjects\.1"),
        ("recipe: [", "not valid YAML"),
        (FLEET + "slots: 1\nparallel: 2", r"slots=1 can't be divided by parallel=2"),
        (FLEET.replace("[train.steps=8]", "[train.step=8]"), r"subject 'two'.*train\.steps"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, wrong: str, words: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(wrong)
    with pytest.raises(ConfigError, match=words):
        dump_configurations(load_fleet(path))
