import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_ray.config.allocator import ALLOCATOR, choose_allocator


def test_library_that_is_not_there_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    library = tmp_path / "libjemalloc.so"
    assert "LD_PRELOAD" not in choose_allocator(library)
    library.touch()
    assert choose_allocator(library)["LD_PRELOAD"] == str(library)


def test_what_a_person_preloads_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/chosen.so")
    library = tmp_path / "libjemalloc.so"
    library.touch()
    assert "LD_PRELOAD" not in choose_allocator(library)


@pytest.mark.skipif("LD_PRELOAD" not in ALLOCATOR, reason="this Ray brings no jemalloc")
@pytest.mark.parametrize("is_there", [True, False])
def test_worker_starts_with_the_library_and_on_a_machine_without_it(
    tmp_path: Path, is_there: bool
) -> None:
    library = ALLOCATOR["LD_PRELOAD"] if is_there else str(tmp_path / "libjemalloc.so")
    script = "from pathlib import Path; print('jemalloc' in Path('/proc/self/maps').read_text())"
    process = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "LD_PRELOAD": library},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert process.stdout == f"{is_there}\n"
