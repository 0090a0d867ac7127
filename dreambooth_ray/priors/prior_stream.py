"""Class images generated in a thread of their own, while training reads them."""

import json
import threading
from collections.abc import Callable
from types import TracebackType

from dreambooth_ray.priors.prior_generation import PriorSetRequest
from dreambooth_ray.storage import fence, paths
from dreambooth_ray.storage.store import Store

_POLL_LOCAL_S, _POLL_REMOTE_S = 0.2, 3.0


class PriorStream:
    """Generates while the block runs; its end waits for all images, and raises the thread's error.

    How it ended is written to the run as well, so that workers that wait for an image learn of it.
    """

    def __init__(
        self,
        generate: Callable[[], Store],
        request: PriorSetRequest,
        set_store: Store,
        run: Store,
        lease: int = 1,
    ):
        """lease: number of the run's lease"""
        self._generate, self._request = generate, request
        self._set, self._run = set_store, run
        self._end_file = fence.file_name_with_lease(paths.PRIOR_END, lease)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run_generation, name="priors", daemon=True)

    def __enter__(self) -> "PriorStream":
        """Begin to generate."""
        self._run.remove_file(self._end_file)
        self._thread.start()
        return self

    def wait_for_first_chunk(self) -> None:
        """Return when the first chunk is there; raises what ended the thread before it."""
        first_chunk_file = f"{paths.prior_chunk_artifact(0)}.json"
        while self._thread.is_alive() and not self._set.exists(first_chunk_file):
            self._thread.join(_POLL_LOCAL_S if self._set.is_local else _POLL_REMOTE_S)
        if self._error is not None:
            raise self._error

    def wait_for_all_chunks(self) -> None:
        """Return when all are generated; raises what ended the thread before."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run_generation(self) -> None:
        end: dict[str, object] = {"complete": True}
        try:
            self._generate()
        except BaseException as error:  # handed to the thread that waits
            self._error, end = error, {"error": f"{error}"}
        try:
            self._run.write(self._end_file, json.dumps(end).encode())
        except BaseException as error:
            self._error = self._error or error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the rest; at an error of the block, end at once."""
        if error is not None:
            self._request.stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
