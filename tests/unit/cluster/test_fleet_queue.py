from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet_queue import FleetEntry, FleetQueue, TryEnd, run_queue
from dreambooth_ray.errors import ConfigError, DataError, StorageError


def entries(*who: tuple[str, int]) -> list[FleetEntry]:
    return [FleetEntry(f"s{k}", owner, priority) for k, (owner, priority) in enumerate(who)]


def order(queue: FleetQueue, fails: frozenset[str] = frozenset()) -> list[str]:
    started: list[str] = []

    def start(entry: FleetEntry) -> str:
        started.append(entry.id)
        return entry.id

    run_queue(queue, start, lambda handles: next(iter(handles)),
          lambda handle: TryEnd("failed", "broken") if handle in fails else TryEnd("done"),
          lambda _: None)  # fmt: skip
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
    assert sorted(started) == sorted(e.id for e in queue.entries)
    owner = {e.id: e.owner for e in queue.entries}
    owners = [owner[name] for name in started]
    for k in range(len(owners)):
        waiting = set(owners[k:])
        starts_so_far = {o: owners[:k].count(o) for o in waiting}
        assert starts_so_far[owners[k]] == min(starts_so_far.values())


def play(queue: FleetQueue, ends: dict[str, list[TryEnd | Exception]]) -> list[str]:
    """Tries by how they end; one that can't be started raises."""
    lines: list[str] = []

    def start(entry: FleetEntry) -> TryEnd:
        end = ends[entry.id].pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    handles: list[TryEnd | None] = [None]

    def wait(running: Iterable[TryEnd]) -> TryEnd | None:
        # A look at the queue comes between any two.
        handles.append(None if handles[-1] else next(iter(running)))
        return handles[-1]

    run_queue(queue, start, wait, lambda end: end, lines.append)
    return lines


def test_a_try_ends_as_it_ended_and_those_beside_it_go_on() -> None:
    queue = FleetQueue(entries(("a", 0), ("b", 0), ("c", 0), ("d", 0)), 2, 2)
    lines = play(
        queue,
        {
            "s0": [TryEnd("stopped", "as it was asked to")],
            "s1": [TryEnd.of_error(ConfigError("train.lr is wrong"))],
            "s2": [
                StorageError("no class images"),
                TryEnd.of_error(OSError("gone")),
                TryEnd("done"),
            ],
            "s3": [DataError("no photograph"), TryEnd("done")],
        },
    )
    assert [(e.state, e.tries) for e in queue.entries] == [
        ("stopped", 1), ("failed", 1), ("done", 3), ("failed", 1),
    ]  # fmt: skip
    assert "s2: waiting OSError: gone" in lines
    assert "s3: failed no photograph" in lines
