import asyncio

import pytest

from serve.admission import AdmissionController, Reservation
from serve.api_errors import APIError


def test_places_are_given_in_turn_and_come_back() -> None:
    async def story() -> None:
        admission = AdmissionController(batch=2, max_open=10)
        admission.set_replicas(1, 100.0)
        reservations = admission.admit("a", [25, 25, 25], 100)
        other = admission.admit("b", [25], 100)[0]
        assert [t.granted.done() for t in reservations] == [True, True, False]
        assert (reservations[0].position, reservations[2].position) == (0, 1)
        async with reservations[0]:
            pass
        assert other.granted.done() != reservations[2].granted.done()
        for reservation in (*reservations, other):
            reservation.close()
        assert (len(admission.queue), len(admission.in_hand)) == (0, 0)
        assert admission.remaining_steps == 0

    asyncio.run(story())


def test_one_who_is_cancelled_while_waiting_leaves_no_trace() -> None:
    async def story() -> None:
        admission = AdmissionController(batch=1, max_open=10)
        admission.set_replicas(1, 100.0)
        first, second = admission.admit("a", [25, 25], 100)

        async def wait(reservation: Reservation) -> None:
            async with reservation:
                raise AssertionError("it has no place")

        task = asyncio.create_task(wait(second))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (len(admission.queue), len(admission.in_hand)) == (0, 1)
        first.close()
        assert not admission.in_hand

    asyncio.run(story())


def test_what_cannot_be_done_in_time_is_refused_with_a_time_to_come_again() -> None:
    async def story() -> None:
        admission = AdmissionController(batch=8, max_open=100)
        admission.set_replicas(2, 100.0)
        admission.admit("a", [25] * 40, 1e9)
        # b waits for its share of a's, not for all of it.
        assert admission.estimate_s("b", [25]) < admission.estimate_s("a", [25])
        with pytest.raises(APIError) as refused:
            admission.admit("a", [25], deadline_s=4)
        assert refused.value.status == 503
        expected_wait_s = admission.estimate_s("a", [25]) - 4
        assert refused.value.retry_after_s == pytest.approx(expected_wait_s)
        assert int(refused.value.headers["Retry-After"]) >= expected_wait_s
        assert len(admission.queue) + len(admission.in_hand) == 40

    asyncio.run(story())


def test_a_deadline_too_short_for_an_endpoint_at_rest_is_the_callers_error() -> None:
    async def story() -> None:
        admission = AdmissionController(batch=8, max_open=100)
        admission.set_replicas(1, 100.0)
        needed = admission.estimate_idle_s([25])
        with pytest.raises(APIError, match=r"deadline_s=0\.1 is too short") as refused:
            admission.admit("a", [25], deadline_s=0.1)
        assert (refused.value.status, refused.value.param) == (400, "deadline_s")
        assert len(admission.admit("a", [25], needed)) == 1

    asyncio.run(story())


def test_more_than_can_be_held_is_refused_whole() -> None:
    async def story() -> None:
        admission = AdmissionController(batch=1, max_open=5)
        admission.admit("a", [25] * 4, 100)
        with pytest.raises(APIError, match="5 is the most"):
            admission.admit("b", [25, 25], 100)
        admission.admit("b", [25], 100)

    asyncio.run(story())


def test_with_no_replica_one_image_goes_through_to_wake_one_up() -> None:
    async def story() -> None:
        now_s = 0.0
        admission = AdmissionController(batch=4, max_open=10, clock=lambda: now_s)
        admission.set_replicas(1, 100.0)
        admission.set_replicas(0, 0.0)
        reservations = admission.admit("a", [25, 25], 100)
        assert [t.granted.done() for t in reservations] == [True, False]
        admission.set_replicas(0, 0.0)
        now_s = 7.0
        admission.set_replicas(1, 100.0)
        assert all(t.granted.done() for t in reservations)
        assert admission.cold_start_s == 7.0

    asyncio.run(story())
