import asyncio

from serve.poll_timer import PollTimer


def test_work_ends_an_idle_wait() -> None:
    async def story() -> None:
        timer = PollTimer(busy_s=0.0, idle_s=3600.0)
        wait_task = asyncio.create_task(timer.wait(has_work=False))
        await asyncio.sleep(0)
        assert not wait_task.done()
        timer.wake()
        await wait_task
        await timer.wait(has_work=True)

    asyncio.run(story())


def test_who_is_cancelled_while_work_comes_is_cancelled() -> None:
    async def story() -> None:
        timer = PollTimer(busy_s=0.0, idle_s=3600.0)
        wait_task = asyncio.create_task(timer.wait(has_work=False))
        await asyncio.sleep(0)
        timer.wake()
        wait_task.cancel()
        await asyncio.wait([wait_task])
        assert wait_task.cancelled()

    asyncio.run(story())


def test_an_idle_wait_ends_by_itself() -> None:
    asyncio.run(PollTimer(busy_s=3600.0, idle_s=0.0).wait(has_work=False))
