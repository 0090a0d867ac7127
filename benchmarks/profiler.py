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

from benchmarks.conditions import conditions
from benchmarks.gated_runs import make_config, running
from benchmarks.theme import Setting
from cluster.session import connection
from dreambooth_ray.config.machines import ClusterConfig
from dreambooth_ray.errors import ConfigError

WARM_UP, STEPS, SECONDS, RATE = 10, 160, 15, 100
THREAD = "TrainingThread"
# Until it is told to go on, which no training does.
WAITS = "Gate.on_train_batch_start"
# The first whose function stands in a stack is what the sample counts for.
PHASES = {
    "backward": ("_engine_run_backward",),
    "denoiser, forward": ("UNet2DConditionModel.forward", "Recorder."),
    "text encoder, forward": ("CLIPTextModel.forward", "TextEncoder"),
    "rest of the training step": ("DreamBoothModule.training_step",),
    "clipping": ("DreamBoothModule.configure_gradient_clipping",),
    "optimizer": ("adam (", "_init_group", "Optimizer.zero_grad"),
    "records": ("StepSequence._record", "Checkpointing."),
}


def shares(raw: str) -> dict[str, float]:
    """Of py-spy's raw output (one stack a line, and its count), by phase."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, count = line.rsplit(" ", 1)
        if THREAD in stack and WAITS not in stack:
            found[_phase(stack)] += int(count)
    whole = found.total()
    return {name: round(count / whole, 4) for name, count in found.most_common()}


def _phase(stack: str) -> str:
    for name, functions in PHASES.items():
        if any(function in stack for function in functions):
            return name
    return "Lightning and the rest"


def profile(method: str) -> dict[str, float]:
    """Shares of a worker's training thread while it makes steps."""
    if (spy := shutil.which("py-spy", path=str(Path(sys.executable).parent))) is None:
        raise ConfigError("py-spy is not installed; it comes with ray[default]")
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name:
        config, out = make_config(Path(name), Setting(), method, 1), Path(name) / "raw"
        with connection(ClusterConfig(), 6, is_bare=True), running(config) as run:
            run.ready()
            run.steps(WARM_UP)
            steps = threading.Thread(target=run.steps, args=(STEPS,))
            steps.start()
            command = [
                spy, "record", "--pid", str(_worker().pid), "--duration", str(SECONDS),
                "--rate", str(RATE), "--format", "raw", "--threads", "--output", str(out),
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
            steps.join()
        return shares(out.read_text())


def _worker() -> psutil.Process:
    children = psutil.Process().children(recursive=True)
    return next(p for p in children if "RayTrainWorker" in " ".join(p.cmdline()))


def main() -> None:
    """Profile both methods, then print and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {method: profile(method) for method in ("full", "lora")}
    record = {"shares_of_the_training_thread": found, "conditions": conditions()}
    print(json.dumps(record, indent=1))
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
