"""Hands a RayJob's command to the head of its cluster and copies what it prints, until it ends.

KubeRay's own submitter follows a job by `ray job logs --follow`, which waits for ever on a
connection whose other end has lost its power. This one asks beside it whether the head is there.
(Ray's dashboard answers no pings: it never reads from that connection.) The head that replaces a
dead one knows nothing of the job: it gets it again, and the run goes on from its newest checkpoint.
Where no head comes, the submitter says so and ends.

`python -m cluster.job_submitter COMMAND` takes address, id and token from the variables that
KubeRay gives to submitters (configureSubmitterContainer of its rayjob_controller.go).
"""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

# Ray's words for a job that has ended.
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_REFUSED = (401, 403)
_SILENCES = (aiohttp.ClientError, TimeoutError, OSError)


@dataclass(frozen=True)
class JobSubmission:
    """A job for a head. address: URL of its dashboard; token: '' where it has none"""

    address: str
    token: str
    job_id: str
    entrypoint: str


@dataclass(frozen=True)
class WaitLimits:
    """How long to wait, in seconds. request_s: for an answer; interval_s: between requests; head_s:
    for a head that answers at all
    """

    request_s: float = 10.0
    interval_s: float = 5.0
    head_s: float = 900.0


class HeadLostError(Exception):
    """No head answers, or the one that does refuses us."""


class JobSubmitter:
    """One job, from its submission to its end.

    write: takes what the job prints; say: takes our own words
    """

    def __init__(
        self,
        submission: JobSubmission,
        waiting: WaitLimits,
        write: Callable[[str], object],
        say: Callable[[str], object],
    ) -> None:
        self._submission, self._waiting = submission, waiting
        self._write, self._say = write, say
        self._num_copied = 0
        self._copying: asyncio.Task[None] | None = None
        self._answered_s, self._is_silent = time.monotonic(), False

    async def run(self) -> str:
        """Ray's word for how the job ended. raises: HeadLostError"""
        token, wait_limits = self._submission.token, self._waiting
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=aiohttp.ClientTimeout(total=wait_limits.request_s),
        ) as session:
            while True:
                try:
                    status = await self._submit_or_follow(session)
                    self._answered_s, self._is_silent = time.monotonic(), False
                except _SILENCES as error:
                    await self._stop_copying()
                    self._note_head_silence(error)
                else:
                    if status in _ENDED:
                        await self._copy_rest_of_log(session)
                        return status
                await self._wait_for_next_poll()

    async def _submit_or_follow(self, session: aiohttp.ClientSession) -> str:
        """Submit the job if the head does not know it, and see that its log is copied.

        Returns Ray's word for it.
        """
        status = await self._read_job_status(session)
        if not status:
            await self._stop_copying()
            await self._submit(session)
            self._num_copied = 0
        elif status not in _ENDED and (self._copying is None or self._copying.done()):
            self._copying = asyncio.create_task(self._copy_log(session))
        return status

    async def _wait_for_next_poll(self) -> None:
        """For the next look, or until the log has come to its end."""
        interval_s = self._waiting.interval_s
        if self._copying and not self._copying.done():
            await asyncio.wait({self._copying}, timeout=interval_s)
        else:
            await asyncio.sleep(interval_s)

    async def _copy_rest_of_log(self, session: aiohttp.ClientSession) -> None:
        if self._copying is None or self._copying.done():
            self._copying = asyncio.create_task(self._copy_log(session))
        await asyncio.wait({self._copying}, timeout=self._waiting.request_s)
        await self._stop_copying()

    async def _stop_copying(self) -> None:
        if self._copying:
            self._copying.cancel()
            await asyncio.gather(self._copying, return_exceptions=True)
        self._copying = None

    def _note_head_silence(self, error: BaseException) -> None:
        """raises: HeadLostError where it has lasted too long"""
        address, patience_s = self._submission.address, self._waiting.head_s
        if not self._is_silent:
            reason = str(error) or type(error).__name__
            self._say(f"the head does not answer ({reason}); waiting for it, or for the one that "
                      "takes its place")  # fmt: skip
        self._is_silent = True
        if time.monotonic() - self._answered_s > patience_s:
            raise HeadLostError(
                f"no head has answered at {address} for {patience_s:.0f} s; the run goes on from "
                "its newest checkpoint when it is submitted again"
            ) from error

    async def _read_job_status(self, session: aiohttp.ClientSession) -> str:
        """Ray's word for the job; empty if the head does not know it."""
        async with session.get(self._job_url()) as answer:
            if answer.status in _REFUSED:
                raise HeadLostError(f"{self._submission.address} refuses the token")
            if answer.status == 404:
                return ""
            answer.raise_for_status()
            return str((await answer.json())["status"])

    async def _submit(self, session: aiohttp.ClientSession) -> None:
        job_submission_request = {
            "entrypoint": self._submission.entrypoint,
            "submission_id": self._submission.job_id,
        }
        async with session.post(
            f"{self._submission.address}/api/jobs/", json=job_submission_request
        ) as answer:
            answer.raise_for_status()
        self._say(f"submitted {self._submission.job_id}")

    async def _copy_log(self, session: aiohttp.ClientSession) -> None:
        """What was copied before a connection was lost comes again, and is left out."""
        num_received_chars = 0
        with contextlib.suppress(*_SILENCES):
            async with session.ws_connect(f"{self._job_url()}/logs/tail") as socket:
                async for log_message in socket:
                    if log_message.type is not aiohttp.WSMsgType.TEXT:
                        return
                    num_already_copied = max(0, self._num_copied - num_received_chars)
                    num_received_chars += len(log_message.data)
                    self._num_copied = max(self._num_copied, num_received_chars)
                    self._write(log_message.data[num_already_copied:])

    def _job_url(self) -> str:
        return f"{self._submission.address}/api/jobs/{self._submission.job_id}"


def read_submission_from_environment(entrypoint: str) -> JobSubmission:
    """What KubeRay's variables say. raises: KeyError naming the one that is missing"""
    address = os.environ["RAY_DASHBOARD_ADDRESS"]
    return JobSubmission(
        address if "://" in address else f"http://{address}",
        os.environ.get("RAY_AUTH_TOKEN", ""),
        os.environ["RAY_JOB_SUBMISSION_ID"],
        entrypoint,
    )


def main() -> None:
    """As KubeRay's own: exit code 0 however the job ends, which the operator asks Ray itself."""
    parser = argparse.ArgumentParser(description="Submit a RayJob's command and follow it.")
    parser.add_argument("entrypoint", help="the command, in one word")
    job_submission = read_submission_from_environment(parser.parse_args().entrypoint)

    def write_stdout(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    submitter = JobSubmitter(
        job_submission,
        WaitLimits(),
        write_stdout,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    try:
        status = asyncio.run(submitter.run())
    except HeadLostError as error:
        sys.exit(str(error))
    print(f"{job_submission.job_id} {status}", file=sys.stderr)


if __name__ == "__main__":
    main()
