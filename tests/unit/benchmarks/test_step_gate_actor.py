import asyncio

from benchmarks.measure import WallAndCpuTime
from benchmarks.step_gate_actor import StepGateActor


def test_run_goes_as_far_as_it_is_let_and_tells_what_it_took() -> None:
    async def both() -> list[WallAndCpuTime]:
        gate_actor, passed = StepGateActor(), []

        async def run() -> None:
            elapsed = None
            while granted := await gate_actor.arrive(elapsed):
                passed.append(granted)
                elapsed = WallAndCpuTime(float(granted))

        running = asyncio.create_task(run())
        await gate_actor.wait_until_ready()
        # Who asks again learns the same at once.
        await gate_actor.wait_until_ready()
        assert passed == []
        elapsed_times = [await gate_actor.run_steps(3), await gate_actor.run_steps(5)]
        await gate_actor.end()
        await running
        assert passed == [3, 5]
        return elapsed_times

    assert asyncio.run(both()) == [WallAndCpuTime(3.0), WallAndCpuTime(5.0)]
