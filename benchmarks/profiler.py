"""What a training worker of ours spends its time on, by py-spy: what could still be spared.

python -m benchmarks.profiler --json benchmarks/results/profile.json
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from benchmarks.conditions import read_conditions
from benchmarks.gated_runs import make_config, start_gated_run
from benchmarks.theme import BenchmarkSettings
from cluster.session import ray_connection
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import ConfigError

WARM_UP, STEPS, SECONDS, RATE = 10, 160, 15, 100
THREAD = "TrainingThread"
# Waiting at the StepGate, which is not part of training.
WAITS = "StepGate.on_train_batch_start"
# The first whose function stands in a stack is what the sample counts for.
PHASES = {
    "backward": ("_engine_run_backward",),
    "denoiser, forward": ("UNet2DConditionModel.forward", "TracedForward."),
    "text encoder, forward": ("CLIPTextModel.forward", "encode_tokens"),
    "rest of the training step": ("DreamBoothModule.training_step",),
    "clipping": ("DreamBoothModule.configure_gradient_clipping",),
    "optimizer": ("adam (", "_init_group", "Optimizer.zero_grad"),
    "records": ("TrainingStepCallback._record_metrics", "CheckpointSaver."),
}


def compute_phase_shares(raw: str) -> dict[str, float]:
    """Of py-spy's raw output (one stack a line, and its count), by phase."""
    stack_samples_by_phase: Counter[str] = Counter()
    for line in raw.splitlines():
        call_stack, num_stack_samples = line.rsplit(" ", 1)
        if THREAD in call_stack and WAITS not in call_stack:
            stack_samples_by_phase[_find_phase(call_stack)] += int(num_stack_samples)
    total_stack_samples = stack_samples_by_phase.total()
    return {
        name: round(count / total_stack_samples, 4)
        for name, count in stack_samples_by_phase.most_common()
    }


def _find_phase(call_stack: str) -> str:
    for phase_name, function_names in PHASES.items():
        if any(function in call_stack for function in function_names):
            return phase_name
    return "Lightning and the rest"


def profile_training_method(method: str) -> dict[str, float]:
    """Shares of a worker's training thread while it makes steps."""
    if (py_spy := shutil.which("py-spy", path=str(Path(sys.executable).parent))) is None:
        raise ConfigError("py-spy is not installed; it comes with ray[default]")
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        config, stacks_file = (
            make_config(Path(temp_folder), BenchmarkSettings(), method, 1),
            Path(temp_folder) / "raw",
        )
        with ray_connection(ClusterConfig(), 6, is_bare=True), start_gated_run(config) as gated_run:
            gated_run.wait_until_ready()
            gated_run.run_steps(WARM_UP)
            steps_thread = threading.Thread(target=gated_run.run_steps, args=(STEPS,))
            steps_thread.start()
            command = [
                py_spy, "record", "--pid", str(_find_worker().pid), "--duration", str(SECONDS),
                "--rate", str(RATE), "--format", "raw", "--threads", "--output", str(stacks_file),
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
            steps_thread.join()
        return compute_phase_shares(stacks_file.read_text())


def _find_worker() -> psutil.Process:
    child_processes = psutil.Process().children(recursive=True)
    return next(p for p in child_processes if "RayTrainWorker" in " ".join(p.cmdline()))


def main() -> None:
    """Profile both methods, then print and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shares_by_method: dict[str, Any] = {
        method: profile_training_method(method) for method in ("full", "lora")
    }
    record = {"shares_of_the_training_thread": shares_by_method, "conditions": read_conditions()}
    print(json.dumps(record, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
