import ctypes
import re
from pathlib import Path

import pytest
import torch

from dreambooth_ray.compat import libc

STATUS = Path("/proc/self/status")


def read_anonymous_kb() -> int:
    match = re.search(r"RssAnon:\s+(\d+) kB", STATUS.read_text())
    assert match
    return int(match[1])


@pytest.mark.skipif(not STATUS.exists(), reason="counts memory by Linux's /proc")
def test_freed_memory_goes_back_to_the_system() -> None:
    small = [torch.ones(2**14) for _ in range(2000)]  # 64 KiB each, below what is mapped
    held = small[::2]
    del small
    before_kb = read_anonymous_kb()
    if not libc.release_freed_memory():
        pytest.skip("another C library")
    assert before_kb - read_anonymous_kb() > 30_000
    assert len(held) == 1000


def test_a_c_library_without_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not libc.release_freed_memory()
