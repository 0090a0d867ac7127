"""Following a run's metrics while they are written: each look reads what is new."""

import json
from typing import Any

from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.store import Store


class MetricsFollower:
    """Remembers how far it has read. A look is one request, of the bytes since the one before.

    A look that finds none asks whether another holder's file is the newest by now.
    """

    def __init__(self, run: Store) -> None:
        self._run = run
        self._name: str | None = None
        self._num_bytes_read, self._last_line = 0, b""
        self._latest: dict[str, Any] | None = None

    def read_latest_metrics(self) -> dict[str, Any] | None:
        """The newest step's metrics; None before there are any.

        raises: StorageError
        """
        if self._name is not None and self._read_new(self._name):
            return self._latest
        lease_numbers = fence.list_leases_of_file(self._run.names(), paths.METRICS)
        file_name = (
            fence.file_name_with_lease(paths.METRICS, lease_numbers[0]) if lease_numbers else None
        )
        if file_name is not None and file_name != self._name:
            self._name, self._num_bytes_read, self._last_line = file_name, 0, b""
            self._read_new(file_name)
        return self._latest

    def _read_new(self, name: str) -> bool:
        """Whether there was anything new."""
        # The last line once more: where another stands there, a resumed run has dropped lines.
        start_byte = self._num_bytes_read - len(self._last_line)
        try:
            new_bytes = self._run.read_from(name, start_byte)
            if not new_bytes.startswith(self._last_line):
                start_byte, new_bytes = 0, self._run.read(name)
        except FileNotFoundError:
            return False
        # A last line without its end is still being written.
        complete_lines = new_bytes[: new_bytes.rfind(b"\n") + 1].splitlines(keepends=True)
        previous_num_bytes_read = self._num_bytes_read
        if complete_lines:
            self._num_bytes_read = start_byte + sum(map(len, complete_lines))
            self._last_line = complete_lines[-1]
            self._latest = json.loads(self._last_line)
        return self._num_bytes_read != previous_num_bytes_read
