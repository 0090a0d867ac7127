"""Peak memory of a checkpoint's uses, each in a process of its own: resume, bundle, export.

    python -m benchmarks.checkpoint_memory --divisor 1 --json benchmarks/results/memory.json

A model of Stable Diffusion 1.5's architecture with random weights, all of its UNet and text
encoder trained. The checkpoint is saved by the product's module under Lightning, after one step
that touches a single weight: what memory it takes does not depend on the numbers. `divisor` is
what all numbers of channels are divided by; 1 is full size (11.8 GB a checkpoint).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.conditions import read_conditions
from benchmarks.fullsize_theme import write_model
from benchmarks.random_models import SD15
from dreambooth_ray.bundles.bundle import export_bundle
from dreambooth_ray.bundles.export_formats import export_run
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.components import load_components, load_pipeline
from dreambooth_ray.models.model_directory import model_directory
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.runs import open_run
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.download import STATE, BaseModel
from dreambooth_ray.training.checkpoint.restore import restored_checkpoint
from dreambooth_ray.training.checkpoint.save import WorkerRank
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.run_state import read_run_state
from dreambooth_ray.training.strategy import DirectCheckpointIO

EXPORT_BAR, RESUME_BAR = 1.2, 1.3
TASKS = ("resume", "bundle", "diffusers", "single-file")


def build_config(folder: Path) -> Config:
    """Of a run that trains all weights of the model in `folder`/model."""
    config_text = f"run_id: memory\nsubject: {{photos: {folder}, class_noun: robot}}"
    overrides = [
        f"model.uri={folder / 'model'}", f"storage.uri={folder / 'out'}", "train.steps=1",
        "train.text_encoder=true", "prior.count=0", "train.method=full",
    ]  # fmt: skip
    return parse_config(config_text, "benchmark", overrides)


class CheapStepModule(DreamBoothModule):
    """Takes a step that costs no memory: of one weight, the other moments being zero."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """A loss of one weight."""
        parameter = next(p for p in self.parameters() if p.requires_grad)
        return parameter.sum() * 0.0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Nothing: the batch is none of the product's."""

    def configure_optimizers(self) -> Any:
        """The product's, with its state as after a step of all weights."""
        optimizer_setup = super().configure_optimizers()
        optimizer = optimizer_setup["optimizer"]
        for param_group in optimizer.param_groups:
            for parameter in param_group["params"]:
                # Zeros of the system are no memory before they are written to.
                optimizer.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros(parameter.shape),
                    "exp_avg_sq": torch.zeros(parameter.shape),
                }  # fmt: skip
        return optimizer_setup


class StopAtTrainStart(pl.Callback):
    """Ends the training where it would begin, once the state is loaded."""

    def __init__(self) -> None:
        self.peak_bytes = self.held_bytes = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the peak, and what this process has to hold."""
        self.peak_bytes = read_peak_bytes()
        weights = list(pl_module.parameters())
        optimizer_moments = [
            value
            for state in trainer.optimizers[0].state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ]
        self.held_bytes = sum(t.numel() * t.element_size() for t in [*weights, *optimizer_moments])
        trainer.should_stop = True
        raise _StateLoadedError


class _StateLoadedError(Exception):
    pass


def read_peak_bytes() -> int:
    """Most memory that this process has held so far, mapped files included.

    Not getrusage's, which counts what its parent held when it was started.
    """
    process_status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", process_status)[1]) * 1024  # type: ignore[index]


def make_module(
    config: Config, kind: type[DreamBoothModule] = DreamBoothModule
) -> DreamBoothModule:
    """The module over a model that is loaded anew."""
    components = load_components(Path(config.model.uri))
    apply_train_method(config, components)
    return kind(config, components)


def make_trainer(max_steps: int, *callbacks: pl.Callback) -> pl.Trainer:
    """Lightning as a worker alone has it."""
    return pl.Trainer(
        max_steps=max_steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        plugins=[DirectCheckpointIO()],
    )  # fmt: skip


def make_dummy_data_loader() -> DataLoader[Any]:
    """Of one batch that nobody looks at."""
    return DataLoader(TensorDataset(torch.zeros(1)))


def write_run(folder: Path, divisor: int) -> None:
    """A model, and a run of it whose last checkpoint is committed."""
    write_model(folder / "model", replace(SD15, divisor=divisor))
    config = build_config(folder)
    run_store = open_run(config)
    trainer = make_trainer(1)
    trainer.fit(make_module(config, CheapStepModule), make_dummy_data_loader())
    local_folder = folder / "local"
    trainer.save_checkpoint(local_folder / STATE)
    run_store.write(paths.METRICS, b'{"step": 1, "loss": 1.0}\n')
    manifest.commit_artifact(run_store, paths.checkpoint(1), local_folder, {"step": 1})
    for path in sorted(local_folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def resume(config: Config, run: Store) -> dict[str, int]:
    """Load the run's checkpoint as a worker does, up to the first step."""
    module, stop_callback = make_module(config), StopAtTrainStart()
    with restored_checkpoint(
        run, config, BaseModel(Path(config.model.uri), ""), WorkerRank(0, 0, 0, 1)
    ) as restored_state:
        assert restored_state is not None
        with suppress(_StateLoadedError):
            make_trainer(2, stop_callback).fit(
                module,
                make_dummy_data_loader(),
                ckpt_path=str(restored_state.state),
                weights_only=False,
            )
    return {"peak_bytes": stop_callback.peak_bytes, "held_bytes": stop_callback.held_bytes}


def make_bundle(config: Config, run: Store) -> dict[str, int]:
    """Export the bundle of a run that is trained."""
    export_bundle(config, Path(config.model.uri), run, read_run_state(run, config))
    return {"peak_bytes": read_peak_bytes()}


def export(folder: Path, run: Store, kind: str) -> dict[str, int]:
    """Write the run's bundle in half precision, in another format."""
    suffix = ".safetensors" if kind == "single-file" else ""
    export_run(run.uri, kind, folder / f"exported-{kind}{suffix}", half=True)
    return {"peak_bytes": read_peak_bytes()}


def run_task(folder: Path, task: str, divisor: int) -> dict[str, int]:
    """One task, in this process."""
    if task == "write":
        write_run(folder, divisor)
        return {"peak_bytes": read_peak_bytes()}
    config = build_config(folder)
    run_store = Store(str(folder / "out")).sub(paths.run("memory"))
    if task == "resume":
        return resume(config, run_store)
    return make_bundle(config, run_store) if task == "bundle" else export(folder, run_store, task)


def measure(divisor: int, tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    """Each task's peak against its bar, by the sizes of files and of what the process holds."""
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        folder = Path(temp_folder)
        run_in_process(folder, "write", divisor)
        half_bytes = sum(p.stat().st_size for p in (folder / "model").rglob("*.safetensors")) // 2
        checkpoint_bytes = manifest.artifact_size_bytes(
            Store(str(folder / "out")).sub(paths.run("memory")), paths.checkpoint(1)
        )
        cases = [
            compare_peak_with_bar(task, run_in_process(folder, task, divisor), half_bytes)
            for task in tasks
        ]
    return {
        "cases": cases, "channels_divided_by": divisor, "half_weights_bytes": half_bytes,
        "checkpoint_bytes": checkpoint_bytes,
    }  # fmt: skip


def compare_peak_with_bar(task: str, peaks: dict[str, int], half_bytes: int) -> dict[str, Any]:
    """peaks: of the task's process; half_bytes: of the model's weights in half precision"""
    if "failure" in peaks:
        return {"case": task, **peaks}
    reference_bytes, max_ratio = (
        (peaks["held_bytes"], RESUME_BAR) if task == "resume" else (half_bytes, EXPORT_BAR)
    )
    peak_ratio = peaks["peak_bytes"] / reference_bytes
    return {
        "case": task,
        **peaks,
        "ratio": round(peak_ratio, 3),
        "bar": max_ratio,
        "reached": peak_ratio <= max_ratio,
    }


def run_in_process(folder: Path, task: str, divisor: int) -> dict[str, Any]:
    """The task's record, from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.checkpoint_memory", "--task", task]
    command += ["--folder", str(folder), "--divisor", str(divisor)]
    completed_process = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed_process.returncode == -9:
        return {"failure": "killed by the system"}
    if completed_process.returncode:
        raise RuntimeError(f"{task} failed: {completed_process.stderr[-2000:]}")
    record: dict[str, Any] = json.loads(completed_process.stdout.splitlines()[-1])
    return record


def main() -> None:
    """Measure, or do one task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--divisor", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--task", default="")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.task:
        # What the libraries take, some of which come with the first model alone.
        load_pipeline(model_directory("toyworld"))
        base_memory = {"base_bytes": read_peak_bytes()}
        print(
            json.dumps(base_memory | run_task(arguments.folder, arguments.task, arguments.divisor))
        )
        return
    record = {**measure(arguments.divisor, tuple(arguments.tasks)), "conditions": read_conditions()}
    record_text = json.dumps(record, indent=1)
    print(record_text)
    if arguments.json:
        arguments.json.write_text(record_text + "\n")


if __name__ == "__main__":
    main()
