from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.data.sampler import batch_positions, growing_set_index, shuffled_index


@given(seed=st.integers(0, 2**62), size=st.integers(1, 50), epoch=st.integers(0, 1000))
def test_every_item_comes_once_an_epoch(seed: int, size: int, epoch: int) -> None:
    items = [shuffled_index(seed, 1, epoch * size + k, size) for k in range(size)]
    assert sorted(items) == list(range(size))


@given(step=st.integers(0, 10**6), share=st.integers(1, 8), world=st.sampled_from([1, 2, 3, 4, 8]))
def test_workers_share_out_what_one_would_take(step: int, share: int, world: int) -> None:
    size = share * world
    of_one_worker = list(batch_positions(step, size, 0, 1))
    of_all_workers = [p for rank in range(world) for p in batch_positions(step, size, rank, world)]
    assert of_all_workers == of_one_worker
    assert batch_positions(step + 1, size, 0, 1).start == of_one_worker[-1] + 1


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
