from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.sampling.request import Request
from dreambooth_ray.sampling.request_handle import RequestHandle
from dreambooth_ray.sampling.step_queue import StepQueue


def ticket(shape: tuple[int, int]) -> RequestHandle:
    return RequestHandle(Request("x", 0), shape, 3, None, None, 0)


@given(st.lists(st.sampled_from([(8, 8), (8, 16), (4, 4)]), max_size=30), st.integers(1, 5))
def test_every_request_gets_its_turn_in_order(shapes: list[tuple[int, int]], places: int) -> None:
    queue, tickets = StepQueue(), [ticket(s) for s in shapes]
    for one in tickets:
        queue.add(one.shape, one)
    begun: list[RequestHandle] = []
    ticks = 0
    while batch := queue.next(lambda _: places):
        ticks += 1
        assert len(batch) <= places
        assert len({t.shape for t in batch}) == 1
        begun += [t for t in batch if t not in begun]
        batch[0].cancel()
    assert ticks == len(tickets)
    for shape in set(shapes):
        assert [t for t in begun if t.shape == shape] == [t for t in tickets if t.shape == shape]
    assert (queue.num_active, queue.num_waiting, queue.tickets()) == (0, 0, [])


def test_a_cancelled_request_gives_its_place_to_the_next() -> None:
    queue, (first, second) = StepQueue(), (ticket((8, 8)), ticket((8, 8)))
    queue.add((8, 8), first)
    queue.add((8, 8), second)
    assert queue.next(lambda _: 1) == [first]
    assert (queue.num_active, queue.num_waiting) == (1, 1)
    first.cancel()
    assert queue.next(lambda _: 1) == [second]


def test_shapes_take_turns() -> None:
    queue, small, large = StepQueue(), ticket((8, 8)), ticket((16, 16))
    queue.add(small.shape, small)
    queue.add(large.shape, large)
    assert [queue.next(lambda _: 4) for _ in range(4)] == [[small], [large], [small], [large]]
