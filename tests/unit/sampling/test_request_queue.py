from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.request_handle import RequestHandle
from dreambooth_ray.sampling.request_queue import RequestQueue


def make_handle(shape: tuple[int, int]) -> RequestHandle:
    return RequestHandle(Request("x", 0), shape, 3, None, None, 0)


@given(st.lists(st.sampled_from([(8, 8), (8, 16), (4, 4)]), max_size=30), st.integers(1, 5))
def test_every_request_gets_its_turn_in_order(
    shapes: list[tuple[int, int]], batch_limit: int
) -> None:
    queue, handles = RequestQueue(), [make_handle(s) for s in shapes]
    for handle in handles:
        queue.add(handle.shape, handle)
    started: list[RequestHandle] = []
    num_steps = 0
    while batch := queue.select_next_batch(lambda _: batch_limit):
        num_steps += 1
        assert len(batch) <= batch_limit
        assert len({t.shape for t in batch}) == 1
        started += [t for t in batch if t not in started]
        batch[0].cancel()
    assert num_steps == len(handles)
    for shape in set(shapes):
        assert [t for t in started if t.shape == shape] == [t for t in handles if t.shape == shape]
    assert (queue.num_active, queue.num_waiting, queue.handles()) == (0, 0, [])


def test_a_cancelled_request_gives_its_place_to_the_next() -> None:
    queue, (first, second) = RequestQueue(), (make_handle((8, 8)), make_handle((8, 8)))
    queue.add((8, 8), first)
    queue.add((8, 8), second)
    assert queue.select_next_batch(lambda _: 1) == [first]
    assert (queue.num_active, queue.num_waiting) == (1, 1)
    first.cancel()
    assert queue.select_next_batch(lambda _: 1) == [second]


def test_shapes_take_turns() -> None:
    queue, small, large = RequestQueue(), make_handle((8, 8)), make_handle((16, 16))
    queue.add(small.shape, small)
    queue.add(large.shape, large)
    assert [queue.select_next_batch(lambda _: 4) for _ in range(4)] == [
        [small],
        [large],
        [small],
        [large],
    ]


def test_turns_are_of_equal_time() -> None:
    """25 steps of a small image wait for some steps of a large one, not for 25."""
    queue, small, large = RequestQueue(), make_handle((8, 8)), make_handle((64, 64))
    queue.add(large.shape, large)
    for _ in range(3):
        assert queue.select_next_batch(lambda _: 4) == [large]
        queue.add_group_seconds(large.shape, 1.0)
    # What the large one has had before is not held against it, nor for the small one.
    queue.add(small.shape, small)
    turns = []
    for _ in range(44):
        batch = queue.select_next_batch(lambda _: 4)
        turns.append(batch[0])
        queue.add_group_seconds(batch[0].shape, 1.0 if batch[0] is large else 0.05)
    assert turns.count(large) in (2, 3)
    small.cancel()
    assert queue.select_next_batch(lambda _: 4) == [large]
