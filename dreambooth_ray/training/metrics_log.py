"""metrics.jsonl: one line an optimizer step, readable while the run goes on.

Each holder of a run writes its own (`storage/fence.py`), which begins with the lines before it.
"""

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.store import Store

REMOTE_INTERVAL_S, _MOST_BYTES_A_S = 10.0, 100_000
# In a step's metrics once there are any: of the workers, of work beside the steps, and steps
# whose gradient was no number.
RESTARTS, FAILURES, SKIPPED = "restarts", "side_failures", "skipped_steps"
# Learning rates of parts where they differ from `lr`, named as their keys in a configuration.
PART_RATES = {"text_encoder": "text_encoder_lr", "words": "identifier_lr"}


def read_metrics(store: Store, up_to_lease: int | None = None) -> list[dict[str, Any]]:
    """Complete lines of a run's metrics, in order; empty if none was written yet.

    up_to_lease: as holders up to that number have them
    """
    metrics_text = (
        fence.read_file_of_highest_lease(store, paths.METRICS, up_to_lease) or b""
    ).decode()
    # A last line without its end is still being written.
    return [
        json.loads(line) for line in metrics_text.splitlines(keepends=True) if line.endswith("\n")
    ]


class MetricsLog:
    """Appends records in a thread of its own; an object store gets them every few seconds.

    Opening at step `start` drops the lines of later steps: a resumed run writes them anew,
    so each step stands there once.
    """

    def __init__(self, store: Store, start: int, lease: int = 1) -> None:
        """raises CheckpointError if lines up to `start` are missing. `records`: those up to it.

        lease: number of the holder's
        """
        self._name = fence.file_name_with_lease(paths.METRICS, lease)
        step_records = [r for r in read_metrics(store, max(1, lease)) if r["step"] <= start]
        if [r["step"] for r in step_records] != list(range(1, start + 1)):
            raise CheckpointError(
                f"{store.uri}/{paths.METRICS} does not hold steps 1 to {start} once each, though "
                "the checkpoint does; restore that file, or start a new run"
            )
        self._store = store
        self.records = step_records
        self._lines = [json.dumps(r) + "\n" for r in step_records]
        self._num_written, self._written_at_s = 0, 0.0
        self._interval_s = REMOTE_INTERVAL_S
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="metrics log")
        self._pending: list[Future[None]] = []
        self.flush()
        self._remove_older_metrics_files(lease)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add steps, without waiting for storage. raises: what an earlier write failed with"""
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()
        self._lines += [json.dumps(record) + "\n" for record in records]
        if self._store.is_local:
            self._pending.append(self._pool.submit(self._append_lines))
        elif not self._pending and time.monotonic() - self._written_at_s > self._interval_s:
            self._pending.append(self._pool.submit(self._write_all_lines))

    def flush(self) -> None:
        """Bring the whole file up to date, and wait until it is; from any thread."""
        self._pool.submit(self._write_all_lines).result()

    def close(self) -> None:
        """The last flush, and the end of the thread."""
        try:
            self.flush()
        finally:
            self._pool.shutdown()

    def _append_lines(self) -> None:
        num_lines_so_far = len(self._lines)
        with self._store.local_path(self._name).open("a") as stream:
            stream.write("".join(self._lines[self._num_written : num_lines_so_far]))
        self._num_written = num_lines_so_far

    def _write_all_lines(self) -> None:
        num_lines_so_far = len(self._lines)
        file_bytes = "".join(self._lines[:num_lines_so_far]).encode()
        self._store.write(self._name, file_bytes)
        # An object store takes whole files: a long one goes there less often.
        self._interval_s = max(REMOTE_INTERVAL_S, len(file_bytes) / _MOST_BYTES_A_S)
        self._num_written, self._written_at_s = num_lines_so_far, time.monotonic()

    def _remove_older_metrics_files(self, lease: int) -> None:
        """Those of earlier holders, for tidiness: the newest counts."""
        if lease > 1:
            for lease_number in fence.list_leases_of_file(
                self._store.names(), paths.METRICS, lease - 1
            ):
                self._store.remove_file(fence.file_name_with_lease(paths.METRICS, lease_number))
