import os

import pytest

from dreambooth_ray.demo_report import count_threads


@pytest.mark.parametrize(
    ("text", "threads"), [("1", 1), ("3", 3), ("4,2", 4), ("", os.cpu_count() or 1)]
)
def test_images_take_the_share_of_cores_that_is_given(
    text: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert count_threads() == threads
