"""The submitter before heads that answer, fall silent and are replaced: Ray's Jobs API by HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from cluster.job_submitter import HeadLostError, JobSubmission, JobSubmitter, WaitLimits

JOB = "dreambooth-train-abcde"
QUICK = WaitLimits(request_s=0.3, interval_s=0.02, head_s=20.0)


@dataclass
class Head:
    """What a head's dashboard answers. is_frozen: as one that has lost its power"""

    token: str = ""
    is_frozen: bool = False
    status: str = ""
    log: list[str] = field(default_factory=list)
    entrypoints: list[str] = field(default_factory=list)
    has_copied: asyncio.Event = field(default_factory=asyncio.Event)

    async def _check(self, request: web.Request) -> None:
        if self.is_frozen:
            await asyncio.Event().wait()
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            raise web.HTTPUnauthorized

    async def get_job(self, request: web.Request) -> web.Response:
        await self._check(request)
        if not self.status:
            raise web.HTTPNotFound(text="does not exist")
        return web.json_response({"status": self.status})

    async def take_job(self, request: web.Request) -> web.Response:
        await self._check(request)
        job = await request.json()
        assert job["submission_id"] == JOB
        self.entrypoints.append(job["entrypoint"])
        self.status = "RUNNING"
        return web.json_response({})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        """As Ray's: sends from the beginning on, and never reads, so that no ping is answered."""
        await self._check(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        num_sent = 0
        while self.is_frozen or self.status == "RUNNING" or num_sent < len(self.log):
            for text in self.log[num_sent:]:
                await socket.send_str(text)
                num_sent += 1
                self.has_copied.set()
            await asyncio.sleep(0.01)
        return socket


@dataclass
class Service:
    """The name of a head: whichever there is."""

    head: Head
    address: str = ""

    async def get_job(self, request: web.Request) -> web.Response:
        return await self.head.get_job(request)

    async def take_job(self, request: web.Request) -> web.Response:
        return await self.head.take_job(request)

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        return await self.head.tail(request)


@asynccontextmanager
async def serve(head: Head) -> AsyncIterator[Service]:
    service = Service(head)
    app = web.Application()
    app.router.add_get(f"/api/jobs/{JOB}", service.get_job)
    app.router.add_post("/api/jobs/", service.take_job)
    app.router.add_get(f"/api/jobs/{JOB}/logs/tail", service.tail)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield service
    finally:
        await runner.cleanup()


def make_submitter(
    service: Service,
    printed: list[str],
    said: list[str],
    waiting: WaitLimits = QUICK,
    token: str = "",
) -> JobSubmitter:
    submission = JobSubmission(service.address, token, JOB, "dreambooth train recipe.yaml")
    return JobSubmitter(submission, waiting, printed.append, said.append)


def test_a_job_is_submitted_once_and_its_log_copied() -> None:
    printed: list[str] = []

    async def story() -> str:
        head = Head(token="secret")
        async with serve(head) as service:
            running = asyncio.create_task(
                make_submitter(service, printed, [], token="secret").run()
            )
            head.log.append("step 1\n")
            await head.has_copied.wait()
            head.log.append("step 2\n")
            head.status = "SUCCEEDED"
            status = await running
            assert head.entrypoints == ["dreambooth train recipe.yaml"]
            return status

    assert asyncio.run(story()) == "SUCCEEDED"
    assert "".join(printed) == "step 1\nstep 2\n"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_head_that_falls_silent_is_noticed(replaced: bool) -> None:
    """One that comes back goes on; one that takes its place gets the job again."""
    printed: list[str] = []
    said: list[str] = []

    async def story() -> Head:
        head = Head()
        async with serve(head) as service:
            running = asyncio.create_task(make_submitter(service, printed, said).run())
            head.log.append("step 1\n")
            await head.has_copied.wait()
            head.is_frozen = True
            while not any("does not answer" in line for line in said):
                await asyncio.sleep(0.01)
            head.is_frozen = False
            if replaced:
                service.head = Head(log=["step 1 again\n"])
            service.head.has_copied.clear()
            while not service.head.has_copied.is_set():
                await asyncio.sleep(0.01)
            service.head.log.append("step 2\n")
            service.head.status = "FAILED"
            assert await running == "FAILED"
            return service.head

    head = asyncio.run(story())
    assert len(head.entrypoints) == 1
    text = "step 1\nstep 1 again\nstep 2\n" if replaced else "step 1\nstep 2\n"
    assert "".join(printed) == text
    assert said.count(f"submitted {JOB}") == (2 if replaced else 1)


def test_a_head_that_never_answers_is_given_up() -> None:
    said: list[str] = []

    async def story() -> None:
        async with serve(Head(is_frozen=True)) as service:
            waiting = WaitLimits(request_s=0.05, interval_s=0.01, head_s=0.1)
            await make_submitter(service, [], said, waiting).run()

    with pytest.raises(HeadLostError, match="no head has answered at http://127"):
        asyncio.run(story())
    assert len(said) == 1


def test_a_token_that_is_refused_ends_at_once() -> None:
    async def story() -> None:
        async with serve(Head(token="secret")) as service:
            await make_submitter(service, [], [], token="another").run()

    with pytest.raises(HeadLostError, match="refuses the token"):
        asyncio.run(story())
