"""Following a run's metrics while they are written: each look reads what is new."""

import json
from typing import Any

from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store


class MetricsFollower:
    """Remembers how far it has read. A look is one request, of the bytes since the one before."""

    def __init__(self, run: Store) -> None:
        self._run = run
        self._num_bytes_read, self._last_line = 0, b""
        self._latest: dict[str, Any] | None = None

    def read_latest(self) -> dict[str, Any] | None:
        """The newest step's metrics; None before there are any.

        raises: StorageError
        """
        # The last line once more: where another stands there, a resumed run has dropped lines.
        start = self._num_bytes_read - len(self._last_line)
        try:
            data = self._run.read_from(paths.METRICS, start)
            if not data.startswith(self._last_line):
                start, data = 0, self._run.read(paths.METRICS)
        except FileNotFoundError:
            return self._latest
        # A last line without its end is still being written.
        complete_lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        if complete_lines:
            self._num_bytes_read = start + sum(map(len, complete_lines))
            self._last_line = complete_lines[-1]
            self._latest = json.loads(self._last_line)
        return self._latest
