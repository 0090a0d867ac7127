import asyncio

import pytest

from serve.admission import AdmissionController, Reservation
from serve.api_errors import APIError


def test_places_are_given_in_turn_and_come_back() -> None:
    async def story() -> None:
        desk = AdmissionController(batch=2, max_open=10)
        desk.set_replicas(1, 100.0)
        turns = desk.enter("a", [25, 25, 25], 100)
        other = desk.enter("b", [25], 100)[0]
        assert [t.granted.done() for t in turns] == [True, True, False]
        assert (turns[0].position, turns[2].position) == (0, 1)
        async with turns[0]:
            pass
        assert other.granted.done() != turns[2].granted.done()
        for turn in (*turns, other):
            turn.close()
        assert (len(desk.queue), len(desk.in_hand), desk.remaining_steps) == (0, 0, 0)

    asyncio.run(story())


def test_one_who_is_cancelled_while_waiting_leaves_no_trace() -> None:
    async def story() -> None:
        desk = AdmissionController(batch=1, max_open=10)
        desk.set_replicas(1, 100.0)
        first, second = desk.enter("a", [25, 25], 100)

        async def wait(turn: Reservation) -> None:
            async with turn:
                raise AssertionError("it has no place")

        task = asyncio.create_task(wait(second))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (len(desk.queue), len(desk.in_hand)) == (0, 1)
        first.close()
        assert not desk.in_hand

    asyncio.run(story())


def test_what_cannot_be_done_in_time_is_refused_with_a_time_to_come_again() -> None:
    async def story() -> None:
        desk = AdmissionController(batch=8, max_open=100)
        desk.set_replicas(2, 100.0)
        desk.enter("a", [25] * 40, 1e9)
        # b waits for its share of a's, not for all of it.
        assert desk.estimate_s("b", [25]) < desk.estimate_s("a", [25])
        with pytest.raises(APIError) as refused:
            desk.enter("a", [25], deadline_s=4)
        assert refused.value.status == 503
        expected = desk.estimate_s("a", [25]) - 4
        assert refused.value.retry_after_s == pytest.approx(expected)
        assert int(refused.value.headers["Retry-After"]) >= expected
        assert len(desk.queue) + len(desk.in_hand) == 40

    asyncio.run(story())


def test_a_deadline_too_short_for_an_endpoint_at_rest_is_the_callers_error() -> None:
    async def story() -> None:
        desk = AdmissionController(batch=8, max_open=100)
        desk.set_replicas(1, 100.0)
        needed = desk.idle_s([25])
        with pytest.raises(APIError, match=r"deadline_s=0\.1 is too short") as refused:
            desk.enter("a", [25], deadline_s=0.1)
        assert (refused.value.status, refused.value.param) == (400, "deadline_s")
        assert len(desk.enter("a", [25], needed)) == 1

    asyncio.run(story())


def test_more_than_can_be_held_is_refused_whole() -> None:
    async def story() -> None:
        desk = AdmissionController(batch=1, max_open=5)
        desk.enter("a", [25] * 4, 100)
        with pytest.raises(APIError, match="5 is the most"):
            desk.enter("b", [25, 25], 100)
        desk.enter("b", [25], 100)

    asyncio.run(story())


def test_with_no_replica_one_image_goes_through_to_wake_one_up() -> None:
    async def story() -> None:
        now = 0.0
        desk = AdmissionController(batch=4, max_open=10, clock=lambda: now)
        desk.set_replicas(1, 100.0)
        desk.set_replicas(0, 0.0)
        turns = desk.enter("a", [25, 25], 100)
        assert [t.granted.done() for t in turns] == [True, False]
        desk.set_replicas(0, 0.0)
        now = 7.0
        desk.set_replicas(1, 100.0)
        assert all(t.granted.done() for t in turns)
        assert desk.cold_start_s == 7.0

    asyncio.run(story())
