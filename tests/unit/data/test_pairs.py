from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.data.pairs import batch_positions, in_order_first, shuffled_index


@given(seed=st.integers(0, 2**62), size=st.integers(1, 50), epoch=st.integers(0, 1000))
def test_every_item_comes_once_an_epoch(seed: int, size: int, epoch: int) -> None:
    seen = [shuffled_index(seed, 1, epoch * size + k, size) for k in range(size)]
    assert sorted(seen) == list(range(size))


@given(step=st.integers(0, 10**6), share=st.integers(1, 8), world=st.sampled_from([1, 2, 3, 4, 8]))
def test_workers_share_out_what_one_would_take(step: int, share: int, world: int) -> None:
    size = share * world
    alone = list(batch_positions(step, size, 0, 1))
    shared = [p for rank in range(world) for p in batch_positions(step, size, rank, world)]
    assert shared == alone
    assert batch_positions(step + 1, size, 0, 1).start == alone[-1] + 1


@given(seed=st.integers(0, 2**62), size=st.integers(1, 20), epoch=st.integers(1, 5))
def test_the_first_time_round_is_in_order(seed: int, size: int, epoch: int) -> None:
    assert [in_order_first(seed, 1, k, size) for k in range(size)] == list(range(size))
    later = epoch * size
    assert in_order_first(seed, 1, later, size) == shuffled_index(seed, 1, later, size)


def test_purposes_and_seeds_differ() -> None:
    orders = {
        tuple(shuffled_index(seed, purpose, k, 20) for k in range(20))
        for seed in (0, 1)
        for purpose in (1, 2)
    }
    assert len(orders) == 4
