import asyncio

import pytest

from serve.admission import AdmissionController, RequestWork, Reservation
from serve.api_errors import APIError


def test_places_are_given_in_turn_and_come_back() -> None:
    async def story() -> None:
        admission = AdmissionController(batch=2, max_open=10)
        admission.set_pool_speed(1, 100.0)
        reservations = admission.admit("a", RequestWork([25, 25, 25]), 100)
        other = admission.admit("b", RequestWork([25]), 100)[0]
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
        admission.set_pool_speed(1, 100.0)
        first, second = admission.admit("a", RequestWork([25, 25]), 100)

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
        admission.set_pool_speed(2, 100.0)
        admission.admit("a", RequestWork([25] * 40), 1e9)
        # b waits for its share of a's, not for all of it.
        assert admission.estimate_completion_s(
            "b", RequestWork([25])
        ) < admission.estimate_completion_s("a", RequestWork([25]))
        with pytest.raises(APIError) as refused:
            admission.admit("a", RequestWork([25]), deadline_s=4)
        assert refused.value.status == 503
        expected_wait_s = admission.estimate_completion_s("a", RequestWork([25])) - 4
        assert refused.value.retry_after_s == pytest.approx(expected_wait_s)
        assert int(refused.value.headers["Retry-After"]) >= expected_wait_s
        assert len(admission.queue) + len(admission.in_hand) == 40

    asyncio.run(story())


def test_a_deadline_too_short_for_an_endpoint_at_rest_is_the_callers_error() -> None:
    async def story() -> None:
        admission = AdmissionController(batch=8, max_open=100)
        admission.set_pool_speed(1, 100.0)
        needed = admission.estimate_min_duration_s(RequestWork([25]))
        with pytest.raises(APIError, match=r"deadline_s=0\.1 is too short") as refused:
            admission.admit("a", RequestWork([25]), deadline_s=0.1)
        assert (refused.value.status, refused.value.param) == (400, "deadline_s")
        assert len(admission.admit("a", RequestWork([25]), needed)) == 1

    asyncio.run(story())


def test_more_than_can_be_held_is_refused_whole() -> None:
    async def story() -> None:
        admission = AdmissionController(batch=1, max_open=5)
        admission.admit("a", RequestWork([25] * 4), 100)
        with pytest.raises(APIError, match="5 is the most"):
            admission.admit("b", RequestWork([25, 25]), 100)
        admission.admit("b", RequestWork([25]), 100)

    asyncio.run(story())


def test_with_no_replica_one_image_goes_through_to_wake_one_up() -> None:
    async def story() -> None:
        now_s = 0.0
        admission = AdmissionController(batch=4, max_open=10, clock=lambda: now_s)
        admission.set_pool_speed(1, 100.0)
        admission.set_pool_speed(0, 0.0)
        reservations = admission.admit("a", RequestWork([25, 25]), 100)
        assert [t.granted.done() for t in reservations] == [True, False]
        admission.set_pool_speed(0, 0.0)
        now_s = 7.0
        admission.set_pool_speed(1, 100.0)
        assert all(t.granted.done() for t in reservations)
        assert admission.cold_start_s == 7.0

    asyncio.run(story())


def test_a_large_image_costs_what_it_takes() -> None:
    """25 steps of 256 times the pixels: nobody waits until the deadline to hear of it."""

    async def story() -> None:
        admission = AdmissionController(batch=8, max_open=100)
        admission.set_pool_speed(1, 40.0)
        large = RequestWork([25], step_cost=256.0, size_px=(1024, 1024))
        with pytest.raises(APIError, match="smaller size") as refused:
            admission.admit("a", large, deadline_s=120)
        assert (refused.value.status, refused.value.code) == (400, "deadline_too_short")
        assert len(admission.admit("a", RequestWork([25]), deadline_s=120)) == 1
        # A replica that is quick enough takes it.
        admission.set_pool_speed(1, 4000.0)
        assert len(admission.admit("a", large, deadline_s=120)) == 1

    asyncio.run(story())


def test_a_small_image_does_not_wait_for_all_of_a_large_one() -> None:
    """Sizes take turns of equal time at a replica."""

    async def story() -> None:
        admission = AdmissionController(batch=8, max_open=100)
        admission.set_pool_speed(1, 40.0)
        small, large = RequestWork([25]), RequestWork([25], 16.0, (256, 256))
        alone_s = admission.estimate_completion_s("b", small)
        reservation = admission.admit("a", large, deadline_s=120)[0]
        assert reservation.remaining == 400
        turn_s = 1.5 * (25 + 8 * 16) / 40
        assert admission.estimate_completion_s("b", small) == pytest.approx(alone_s + turn_s)
        # Of its own size, for all of it.
        assert (
            admission.estimate_completion_s("b", large)
            > admission.estimate_min_duration_s(large) + 1.5 * 10 - 1e-6
        )
        reservation.set_remaining_steps(1)
        assert reservation.remaining == 16
        assert admission.estimate_completion_s("b", small) == pytest.approx(alone_s + 1.5 * 16 / 40)
        # Nor is there a way past where all places are taken.
        admission.admit("a", RequestWork([25] * 7, 16.0, (256, 256)), deadline_s=1e9)
        assert admission.estimate_completion_s("b", small) > 1.5 * 7 * 400 / 40

    asyncio.run(story())
