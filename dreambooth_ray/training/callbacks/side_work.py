"""Work beside the step and the commit: loggers, samples, mirrors. Its failures end nothing.

Each kind of failure is said once to whoever watches the run, and all of them are counted.
"""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.worker_messages import post_message

# What waits for the thread at most: a logger that hangs must not fill the memory.
_MOST_WAITING = 2_000
_Result = TypeVar("_Result")
_Task = tuple[str, Callable[[], object]]


class SideWork:
    """Does guarded work at once, or in order in a thread of its own."""

    def __init__(self, run: Store, num_failures: int = 0, *, is_first: bool = True) -> None:
        """num_failures: of earlier attempts of the run, counted on from; is_first: whether this is
        the first of several workers, which reports for all
        """
        self._run, self._reported_kinds, self._is_first = run, set[str](), is_first
        self._lock, self._num_failures = threading.Lock(), num_failures
        self._tasks: queue.Queue[_Task | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(
            target=self._run_queued_tasks, name="side work", daemon=True
        )
        self._thread.start()

    @property
    def num_failures(self) -> int:
        """How many pieces of work have failed."""
        return self._num_failures

    def run(self, task_name: str, work: Callable[[], _Result], default: _Result) -> _Result:
        """The result of `work`, or `default` where it raises.

        task_name: names the work to a person
        """
        try:
            return work()
        except Exception as error:
            self.note_failure(task_name, error)
            return default

    def submit(self, task_name: str, work: Callable[[], object]) -> None:
        """Do `work` in the thread, after what was submitted before."""
        try:
            self._tasks.put_nowait((task_name, work))
        except queue.Full:
            self.note_failure(
                task_name, RuntimeError(f"{_MOST_WAITING} pieces of work wait before it")
            )

    def note_failure(self, task_name: str, error: BaseException) -> None:
        """Count a failure; say it if none of its kind was said before."""
        while error.__cause__ is not None:
            # Libraries wrap a full disk into words about values that can't be logged.
            error = error.__cause__
        with self._lock:
            self._num_failures += 1
            failure_kind = f"{task_name}: {type(error).__name__}"
            is_new_kind = failure_kind not in self._reported_kinds
            self._reported_kinds.add(failure_kind)
        if not (is_new_kind and self._is_first):
            return
        self.say(f"warning: {task_name} failed: {_describe_error(error)}; training goes on without")

    def say(self, text: str) -> None:
        """Tell whoever watches the run, in the thread: storage may be away, and nobody waits."""
        if threading.current_thread() is self._thread:
            self._post_message(text)
        else:
            with suppress(queue.Full):
                self._tasks.put_nowait(("telling of a failure", lambda: self._post_message(text)))

    def close(self, timeout_s: float) -> None:
        """Finish what waits; what takes longer than `timeout_s` is left behind and said."""
        deadline = time.monotonic() + timeout_s
        with suppress(queue.Full):
            self._tasks.put(None, timeout=timeout_s)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._post_message(
                f"warning: loggers did not end within {timeout_s:.0f} s; the run ends without "
                "them, and their last values may be missing there. metrics.jsonl has all"
            )

    def _run_queued_tasks(self) -> None:
        while (task := self._tasks.get()) is not None:
            task_name, task_function = task
            try:
                task_function()
            except BaseException as error:  # a logger may even ask the process to exit
                self.note_failure(task_name, error)

    def _post_message(self, text: str) -> None:
        with suppress(Exception):  # who can't be told goes on without knowing
            post_message(self._run, text)


def _describe_error(error: BaseException) -> str:
    error_text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {error_text}" if error_text else type(error).__name__
