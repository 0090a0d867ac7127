from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.data.data_sampler import (
    ShapeOccurrenceCounter,
    group_rows_by_shape,
    growing_set_index,
    shuffled_index,
)


@given(seed=st.integers(0, 2**62), size=st.integers(1, 50), epoch=st.integers(0, 1000))
def test_every_item_comes_once_an_epoch(seed: int, size: int, epoch: int) -> None:
    items = [shuffled_index(seed, 1, epoch * size + k, size) for k in range(size)]
    assert sorted(items) == list(range(size))


@given(
    shapes=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    num_parts=st.integers(1, 3),
    world=st.sampled_from([1, 2, 3, 4]),
    data=st.data(),
)
def test_workers_share_out_a_step_in_forwards_of_one_shape(
    shapes: list[int], num_parts: int, world: int, data: st.DataObject
) -> None:
    size = len(shapes) * num_parts * world
    shapes = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    seen = []
    for part in range(num_parts):
        by_worker = [
            group_rows_by_shape(shapes, rank, world, num_parts, part) for rank in range(world)
        ]
        # Equal work: as many rows and as many forwards for each.
        assert len({len(groups) for groups in by_worker}) == 1
        assert len({sum(map(len, groups)) for groups in by_worker}) == 1
        for group in (group for groups in by_worker for group in groups):
            assert len({shapes[row] for row in group}) == 1
            seen += group
    assert sorted(seen) == list(range(size))


@given(share=st.integers(1, 8), world=st.sampled_from([1, 2, 4]), rank=st.integers(0, 3))
def test_rows_of_one_shape_are_a_run_of_the_batch(share: int, world: int, rank: int) -> None:
    rank %= world
    groups = group_rows_by_shape([0] * share * world, rank, world)
    assert groups == [list(range(rank * share, (rank + 1) * share))]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_turns_of_a_shape_count_from_its_first(shapes: list[int]) -> None:
    turns = ShapeOccurrenceCounter(shapes.__getitem__, len(shapes))
    for shape in set(shapes):
        positions = [position for position, other in enumerate(shapes) if other == shape]
        assert [turns.count_earlier_same_shape(position) for position in positions] == list(
            range(len(positions))
        )
        assert turns.totals[shape] == len(positions)


@given(
    seed=st.integers(0, 2**62), size=st.integers(1, 60), total=st.integers(1, 300), data=st.data()
)
def test_new_items_come_in_order_and_no_sooner_than_they_must(
    seed: int, size: int, total: int, data: st.DataObject
) -> None:
    items = [growing_set_index(seed, 1, k, size, total) for k in range(total)]
    firsts = list(dict.fromkeys(items))
    assert firsts == list(range(min(size, total)))
    position = data.draw(st.integers(0, total - 1))
    # Made at an even pace over the whole length, an item is there when it is asked for.
    head = min(16, size)
    assert max(items[: position + 1]) < head + (position + 1) * size / total
    beyond = growing_set_index(seed, 1, total + position, size, total)
    assert 0 <= beyond < size


def test_no_item_of_a_growing_set_crowds_out_the_rest() -> None:
    size, total = 100, 8000
    items = [growing_set_index(7, 1, k, size, total) for k in range(total)]
    share = [items.count(item) / total * size for item in range(size)]
    assert max(share) < 2.5
    for item in (50, 75):
        nearby = share[item - 8 : item + 8]
        assert abs(sum(nearby) / len(nearby) - 1.5 * (1 - (item / size) ** 2)) < 0.25
    assert min(share[:80]) > 0.25


def test_purposes_and_seeds_differ() -> None:
    orders = {
        tuple(shuffled_index(seed, purpose, k, 20) for k in range(20))
        for seed in (0, 1)
        for purpose in (1, 2)
    }
    assert len(orders) == 4
