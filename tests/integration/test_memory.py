"""What a checkpoint's uses take in memory, each in a process of its own.

On models of a few hundred megabytes, where the libraries take more than the bars allow: of two
sizes the difference is held. A larger size: `python -m benchmarks.checkpoint_memory`.
"""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.checkpoint_memory import EXPORT_BAR, RESUME_BAR, run_in_process

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]
TASKS = ("resume", "bundle", "diffusers", "single-file")
SMALL_DIVISOR, LARGE_DIVISOR = 8, 4


def measure(folder: Path, divisor: int) -> dict[str, dict[str, Any]]:
    run_in_process(folder, "write", divisor)
    half_bytes = sum(p.stat().st_size for p in (folder / "model").rglob("*.safetensors")) // 2
    return {
        "model": {"half_bytes": half_bytes},
        **{task: run_in_process(folder, task, divisor) for task in TASKS},
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return measure(tmp_path_factory.mktemp("small"), SMALL_DIVISOR)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return measure(tmp_path_factory.mktemp("large"), LARGE_DIVISOR)


def test_a_resume_holds_weights_and_optimizer_once(
    small: dict[str, dict[str, Any]], large: dict[str, dict[str, Any]]
) -> None:
    held_bytes = large["resume"]["held_bytes"] - small["resume"]["held_bytes"]
    assert large["resume"]["peak_bytes"] - small["resume"]["peak_bytes"] <= RESUME_BAR * held_bytes


@pytest.mark.parametrize("kind", ["bundle", "diffusers", "single-file"])
def test_an_export_holds_about_the_model_in_half_precision(
    small: dict[str, dict[str, Any]], large: dict[str, dict[str, Any]], kind: str
) -> None:
    half_bytes = large["model"]["half_bytes"] - small["model"]["half_bytes"]
    assert large[kind]["peak_bytes"] - small[kind]["peak_bytes"] <= EXPORT_BAR * half_bytes
