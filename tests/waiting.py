"""Waiting for a condition, not for time to pass."""

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object], timeout_s: float = 300, interval_s: float = 0.05
) -> None:
    """Return once `condition()` is true; fail after `timeout_s`. interval_s: of a look at it"""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not met within {timeout_s} s"
        time.sleep(interval_s)
