import asyncio

from benchmarks.measure import Spent
from benchmarks.step_gate_actor import StepGateActor


def test_run_goes_as_far_as_it_is_let_and_tells_what_it_took() -> None:
    async def both() -> list[Spent]:
        turnstile, passed = StepGateActor(), []

        async def run() -> None:
            spent = None
            while granted := await turnstile.arrive(spent):
                passed.append(granted)
                spent = Spent(float(granted))

        running = asyncio.create_task(run())
        await turnstile.ready()
        # Who asks again learns the same at once.
        await turnstile.ready()
        assert passed == []
        took = [await turnstile.turn(3), await turnstile.turn(5)]
        await turnstile.end()
        await running
        assert passed == [3, 5]
        return took

    assert asyncio.run(both()) == [Spent(3.0), Spent(5.0)]
