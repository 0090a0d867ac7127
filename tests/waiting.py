"""Waiting for a condition, not for time to pass."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout_s: float = 300) -> None:
    """Return once `met()` is true; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not met within {timeout_s} s"
        time.sleep(0.05)  # the interval of a poll
