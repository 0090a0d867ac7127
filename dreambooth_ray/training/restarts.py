"""Restarts of a run's worker group: which failures get one, and the record of restarts.

The record, restarts.json, has one writer, the process that started the run.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from dreambooth_ray.compat.ray_policies import WORKER_LOST
from dreambooth_ray.errors import PERMANENT, DreamBoothError, StorageError
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.worker_messages import post_message

# Of a program or of what is installed, which a second try finds as the first did.
_DEFECTS = (TypeError, AttributeError, NameError, ImportError, NotImplementedError)
# What torch's gloo backend says when the worker at the other end is gone. It raises plain
# RuntimeErrors, so there is no type to go by.
_LOST_PEER = re.compile(r"gloo|connection (closed|reset)|broken pipe|socket closed", re.IGNORECASE)
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Restart:
    """One more attempt. attempt: counts from 2; cause: one line; step: it goes on from this one."""

    attempt: int
    cause: str
    step: int
    at_s: float


def read_restarts(run: Store) -> list[Restart]:
    """All restarts of a run, in order."""
    try:
        return [Restart(**record) for record in json.loads(run.read(paths.RESTARTS))]
    except FileNotFoundError:
        return []


class RestartPolicy:
    """Whether workers that failed are started again. Pure.

    Dead workers, lost hosts and storage that stays away count by attempts without progress: a long
    run may lose many hosts. An exception that the training itself raises ends the run when it
    comes a second time.
    """

    def __init__(self, max_failures: int) -> None:
        """max_failures: attempts in a row without a new checkpoint that are tried again"""
        self._max_failures = max_failures
        self._seen_signatures: set[str] = set()
        self._step, self._num_fruitless = -1, 0

    def should_restart(self, failures: Sequence[BaseException], step: int) -> bool:
        """failures: of all workers that failed; step: of the newest checkpoint"""
        if any(isinstance(failure, PERMANENT) for failure in failures):
            return False
        self._num_fruitless = 1 if step > self._step else self._num_fruitless + 1
        self._step = max(step, self._step)
        if self._num_fruitless > self._max_failures:
            return False
        if any(is_infrastructure_failure(failure) for failure in failures):
            return True
        if any(isinstance(failure, _DEFECTS) for failure in failures):
            return False
        signatures = {_error_signature(failure) for failure in failures}
        is_repeated_failure = bool(signatures & self._seen_signatures)
        self._seen_signatures |= signatures
        return not is_repeated_failure


def is_infrastructure_failure(failure: BaseException) -> bool:
    """Whether something outside the training went away: a process, a host, a peer, storage."""
    if isinstance(failure, (StorageError, *WORKER_LOST)):
        return True
    # Whoever holds such an error has torch; who has none is spared its import.
    if (torch := sys.modules.get("torch")) and isinstance(failure, torch.distributed.DistError):
        return True
    return type(failure) is RuntimeError and _LOST_PEER.search(str(failure)) is not None


def describe_failure_cause(failures: Sequence[BaseException]) -> str:
    """The cause in one line: a death before the errors that others had of it."""
    if not failures:
        return "unknown"
    root_failure = min(
        failures,
        key=lambda failure: not is_infrastructure_failure(failure) or _is_lost_peer(failure),
    )
    error_message = " ".join(str(root_failure).split())
    if isinstance(root_failure, DreamBoothError):
        return error_message
    if is_infrastructure_failure(root_failure) and not _is_lost_peer(root_failure):
        return f"a worker died ({type(root_failure).__name__})" + (
            f": {error_message[:200]}" if error_message else ""
        )
    return f"{type(root_failure).__name__}: {error_message[:300]}"


def _is_lost_peer(failure: BaseException) -> bool:
    return type(failure) is RuntimeError


def _error_signature(failure: BaseException) -> str:
    """Equal for two failures of the same kind, whatever addresses and numbers they name."""
    return f"{type(failure).__name__}: {_NUMBER.sub('#', str(failure))}"


class RestartRecorder:
    """Decides about a run's failures and writes down the restarts that follow."""

    def __init__(self, run: Store, max_failures: int, clock: Callable[[], float] = time.time):
        self._run, self._policy, self._clock = run, RestartPolicy(max_failures), clock
        self._restarts = read_restarts(run)
        self._step = 0

    @property
    def count(self) -> int:
        """Restarts of the run so far, earlier processes included."""
        return len(self._restarts)

    def should_restart(self, failures: Sequence[BaseException]) -> bool:
        """Decide; a restart is recorded and told to whoever watches the run."""
        self._refresh_checkpoint_step()
        if not self._policy.should_restart(failures, self._step):
            return False
        self._save_restart(describe_failure_cause(failures))
        return True

    def record_restart(self, cause: str) -> None:
        """Record a restart that others have decided, and post a message."""
        self._refresh_checkpoint_step()
        self._save_restart(cause)

    def _refresh_checkpoint_step(self) -> None:
        """Of the newest checkpoint, as it was when storage last answered."""
        with suppress(StorageError):
            self._step = (committed_steps(self._run)[-1:] or [0])[0]

    def _save_restart(self, cause: str) -> None:
        restart = Restart(self.count + 2, cause, self._step, self._clock())
        self._restarts.append(restart)
        try:
            restarts_json = json.dumps(
                [asdict(restart_record) for restart_record in self._restarts], indent=1
            )
            self._run.write(paths.RESTARTS, restarts_json.encode())
            post_message(
                self._run,
                f"restart: attempt {restart.attempt} goes on from step {restart.step}, "
                f"because {restart.cause}",
            )
        except StorageError:
            return  # the restart itself does not depend on its record
