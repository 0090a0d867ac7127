"""What a checkpoint's uses take in memory, each in a process of its own.

On a model of a few hundred megabytes, where the libraries take more than the bars allow: what
an import takes is measured first and left out. The whole size: `python -m
benchmarks.checkpoint_memory`.
"""

from typing import Any

import pytest

from benchmarks.checkpoint_memory import EXPORT_BAR, RESUME_BAR, TASKS, run_in_process

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]
DIVISOR = 4


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("memory")
    run_in_process(folder, "write", DIVISOR)
    half_bytes = sum(p.stat().st_size for p in (folder / "model").rglob("*.safetensors")) // 2
    tasks = {task: run_in_process(folder, task, DIVISOR) for task in TASKS}
    return {"all": {"half_bytes": half_bytes}, **tasks}


def test_a_resume_holds_weights_and_optimizer_once(measured: dict[str, dict[str, Any]]) -> None:
    resume = measured["resume"]
    assert resume["peak_bytes"] - resume["base_bytes"] <= RESUME_BAR * resume["held_bytes"]


@pytest.mark.parametrize("task", ["bundle", "diffusers", "single-file"])
def test_an_export_holds_less_than_the_model_in_half_precision(
    measured: dict[str, dict[str, Any]], task: str
) -> None:
    export, half_bytes = measured[task], measured["all"]["half_bytes"]
    assert export["peak_bytes"] - export["base_bytes"] <= EXPORT_BAR * half_bytes
