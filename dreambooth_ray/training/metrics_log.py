"""metrics.jsonl: one line an optimizer step, readable while the run goes on."""

import json
import time
from typing import Any

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store

REMOTE_INTERVAL_S = 5.0
# In a step's metrics once there are any: of the workers, and of work beside the steps.
RESTARTS, FAILURES = "restarts", "side_failures"


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """Complete lines of a run's metrics, in order; empty if none was written yet."""
    if not store.exists(paths.METRICS):
        return []
    text = store.read(paths.METRICS).decode()
    # A last line without its end is still being written.
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class MetricsLog:
    """Appends records; a local file at once, an object store every few seconds.

    Opening at step `start` drops the lines of later steps: a resumed run writes them anew,
    so each step stands there once.
    """

    def __init__(self, store: Store, start: int) -> None:
        """raises CheckpointError if lines up to `start` are missing. `records`: those up to it."""
        records = [r for r in read_metrics(store) if r["step"] <= start]
        if [r["step"] for r in records] != list(range(1, start + 1)):
            raise CheckpointError(
                f"{store.uri}/{paths.METRICS} does not hold steps 1 to {start} once each, though "
                "the checkpoint does; restore that file, or start a new run"
            )
        self._store = store
        self.records = records
        self._lines = [json.dumps(r) + "\n" for r in records]
        self._written_at = 0.0
        self.flush()

    def append(self, record: dict[str, float]) -> None:
        """Add one step."""
        line = json.dumps(record) + "\n"
        self._lines.append(line)
        if self._store.is_local:
            with self._store.local_path(paths.METRICS).open("a") as stream:
                stream.write(line)
        elif time.monotonic() - self._written_at > REMOTE_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Bring the whole file up to date."""
        self._store.write(paths.METRICS, "".join(self._lines).encode())
        self._written_at = time.monotonic()
