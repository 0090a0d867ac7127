"""Theme `checkpoint`: what training waits for its checkpoints, their upload, and after a kill.

The wait: one worker's training in this process, with the product's own callbacks, a checkpoint of
the complete state every 50 steps (25 in smoke profile), uploaded beside it. What counts is the time
in which the training thread does nothing else; the last checkpoint, which a run waits for, is
apart. The upload: the commit of those files with hashes, against fsspec's plain copy of them. After
a kill: a worker of `dreambooth train` is killed between two checkpoints; until the run is past
where it was.

BENCH_STORAGE in the environment names other storage than a folder: s3://bucket/bench.
"""

import os
import tempfile
import time
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from benchmarks.class_images import draw_class_images
from benchmarks.measure import Case, clocked, compare, quantiles
from benchmarks.recovery import recovery
from benchmarks.theme import Setting
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import read_configured, split
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.source import model_directory, model_hash
from dreambooth_ray.models.trainable_params import apply_method
from dreambooth_ray.preparation import Prepared
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.callbacks.loggers import Loggers
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.step_sequence import StepSequence
from dreambooth_ray.training.checkpoint.retention import committed_steps
from dreambooth_ray.training.checkpoint.save import CheckpointSaver, WorkerRank
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.strategy import DirectIO

CLASS_IMAGES = 8
# Share of its time that training may wait for checkpoints.
MOST_WAITED = 0.05


class Ended(pl.Callback):
    """When the last step was over, before the last checkpoint is waited for."""

    at_s = 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the clock."""
        self.at_s = time.perf_counter()


def measure(setting: Setting) -> dict[str, Any]:
    """Wait and upload of both methods, in smoke profile of one, and a recovery."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    elsewhere = os.environ.get("BENCH_STORAGE", "")
    cases, every = list[dict[str, Any]](), setting.pick(25, 50)
    for method in ("full", "lora")[: setting.pick(1, 2)]:
        with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name:
            folder = Path(name)
            storage = elsewhere or str(folder / "storage")
            cases.append(_training(method, every, every * setting.pick(2, 8), storage, folder))
            cases.append(_upload(method, storage, folder, setting.pick(3, 9)))
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name:
        storage = elsewhere or str(Path(name) / "storage")
        kills, workers, class_images = (setting.pick(*pair) for pair in ((1, 3), (1, 2), (0, 8)))
        cases.append(recovery(Path(name), storage, kills, workers, class_images))
    return {
        "headline": {"without_waiting": cases[0]["case"]},
        "cases": cases,
        "configuration": {
            "every": every, "storage": "object storage" if elsewhere else "a folder",
            "class_images": CLASS_IMAGES, "workers": 1,
        },
    }  # fmt: skip


def _training(method: str, every: int, steps: int, storage: str, folder: Path) -> dict[str, Any]:
    """One training; seconds, shares and bytes."""
    write_photographs(folder / "photos", 7, "robot", 5, 256)
    given = [
        f"subject.photos={folder / 'photos'}", f"storage.uri={storage}", f"train.method={method}",
        f"train.steps={steps}", f"checkpoint.every={every}", f"prior.count={CLASS_IMAGES}",
        "prior.num_inference_steps=8", "sample.every=0", "cluster.workers=1", f"run_id={method}",
    ]  # fmt: skip
    config = load_config("toy-robot.yaml", given)
    directory = model_directory(config.model.uri)
    order, drawn = draw_class_images(Prepared(config, directory))
    parts = load_components(directory)
    apply_method(config, parts)
    trained = [split(config, read_configured(config, s))[0] for s in config.all_subjects]
    corpus = TrainingDataset(config, parts, trained, PriorSet(drawn, order.count), (0, 1))
    run = Store(storage).sub(paths.run(method))
    side_work, ended = SideWork(run), Ended()
    loggers, place = Loggers(run, config, 0, side_work), WorkerRank(0, 0, 0, 1)
    saving = CheckpointSaver(run, config, side_work, place, _about(config, directory))
    sequence = StepSequence(run, corpus, side_work=side_work, loggers=loggers, checkpointing=saving)
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False,
        callbacks=[ended, sequence], enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=config.train.max_grad_norm,
        use_distributed_sampler=False, default_root_dir=folder, plugins=[DirectIO()],
    )  # fmt: skip
    began = time.perf_counter()
    trainer.fit(DreamBoothModule(config, parts), DataLoader(corpus, batch_size=None))
    sequence.finish(trainer)
    training_s, last_s = ended.at_s - began, time.perf_counter() - ended.at_s
    newest = paths.checkpoint(committed_steps(run)[-1])
    kept = 1 - saving.waited_s / training_s
    return {
        "case": f"{method}: a checkpoint every {every} steps",
        "peer": "without_waiting",
        "steps": steps,
        "bytes_each": manifest.size_bytes(run, newest),
        "training_s": round(training_s, 2),
        "waited_s": round(saving.waited_s, 3),
        "last_checkpoint_s": round(last_s, 2),
        "ratio": quantiles([kept]),
        "bar": 1 - MOST_WAITED,
        "reached": kept >= 1 - MOST_WAITED,
    }


def _upload(method: str, storage: str, folder: Path, pairs: int) -> dict[str, Any]:
    """Bytes a second of a commit, and of the same files copied without hashes or manifest."""
    run = Store(storage).sub(paths.run(method))
    source = folder / "files"
    manifest.fetch(run, paths.checkpoint(committed_steps(run)[-1]), source)
    copies, numbers = Store(storage).sub("copies"), count()
    files, root = copies.filesystem

    def commit() -> None:
        manifest.commit(copies, str(next(numbers)), source, {})

    def copy() -> None:
        files.put(f"{source}/", f"{root}/{next(numbers)}/", recursive=True)

    megabytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / 1e6
    case = Case(f"{method}: upload with hashes", "plain_copy", megabytes, "MB")
    return compare(case, clocked(commit), clocked(copy), pairs)


def _about(config: Config, directory: Path) -> dict[str, object]:
    strategy = config.train.strategy
    return {"strategy": strategy, "world_size": 1, "model_hash": model_hash(directory)}
