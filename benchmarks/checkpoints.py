"""How long training waits for its checkpoints.

    python -m benchmarks.checkpoints --json benchmarks/results/checkpoints.json
    python -m benchmarks.checkpoints --storage s3://bucket/bench

One worker's training in this process, with the product's own callbacks: a checkpoint of the
complete state every 50 steps, uploaded beside the training. What counts is the time in which
the training thread does nothing else; the last checkpoint, which a run waits for, is apart.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from benchmarks.conditions import conditions
from dreambooth_ray import pipeline
from dreambooth_ray.config.load import load_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.priorset import PriorSet
from dreambooth_ray.data.subject import read_configured, split
from dreambooth_ray.diffusion.components import load_components, model_directory, model_hash
from dreambooth_ray.diffusion.methods import apply_method
from dreambooth_ray.priors.painter import Painter
from dreambooth_ray.priors.pool import open_set
from dreambooth_ray.storage import layout, manifest
from dreambooth_ray.storage.store import Store
from dreambooth_ray.toyworld.photoshoot import write_photographs
from dreambooth_ray.training.checkpoint import committed_steps
from dreambooth_ray.training.checkpointing import Checkpointing, Place
from dreambooth_ray.training.corpus import Corpus
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.tracking import Tracking

CLASS_IMAGES, EVERY = 16, 50


class Ended(pl.Callback):
    """When the last step was over, before the last checkpoint is waited for."""

    at_s = 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the clock."""
        self.at_s = time.perf_counter()


def draw_class_images(prepared: pipeline.Prepared) -> PriorSet:
    """A set of class images, drawn here."""
    order = pipeline.order_priors(prepared, CLASS_IMAGES)
    store = open_set(Store(prepared.config.storage.uri), order.spec)
    painter = Painter(str(order.directory), store.uri, order.spec, gpu=False)
    for number in range(2 * CLASS_IMAGES // order.spec.chunk_size):
        painter.paint(number)
    return PriorSet(store, CLASS_IMAGES)


def measure(method: str, steps: int, storage: str, folder: Path) -> dict[str, Any]:
    """One training; seconds, shares and bytes."""
    write_photographs(folder / "photos", 7, "robot", 5, 256)
    given = [
        f"subject.photos={folder / 'photos'}", f"storage.uri={storage}", f"train.method={method}",
        f"train.steps={steps}", f"checkpoint.every={EVERY}", f"prior.count={CLASS_IMAGES}",
        "prior.num_inference_steps=8", "sample.every=0", "cluster.workers=1", f"run_id={method}",
    ]  # fmt: skip
    config = load_config("toy-robot.yaml", given)
    directory = model_directory(config.model.uri)
    priors = draw_class_images(pipeline.Prepared(config, directory))
    parts = load_components(directory)
    apply_method(config, parts)
    trained = [split(config, read_configured(config, s))[0] for s in config.all_subjects]
    corpus = Corpus(config, parts, trained, priors, (0, 1))
    run = Store(storage).sub(layout.run(method))
    tracking, ended = Tracking(run, config, 0), Ended()
    saving = Checkpointing(run, config, tracking, Place(0, 0, 0, 1), _about(config, directory))
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False,
        callbacks=[ended, tracking, saving], enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=config.train.max_grad_norm,
        use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    began = time.perf_counter()
    trainer.fit(DreamBoothModule(config, parts), DataLoader(corpus, batch_size=None))
    training_s, last_s = ended.at_s - began, time.perf_counter() - ended.at_s
    count = steps // EVERY
    newest = layout.checkpoint(committed_steps(run)[-1])
    return {
        "case": method,
        "steps": steps,
        "checkpoints": count,
        "bytes_each": manifest.size_bytes(run, newest),
        "training_s": round(training_s, 2),
        "waited_s": round(saving.waited_s, 3),
        "waited_share": round(saving.waited_s / training_s, 4),
        "last_checkpoint_s": round(last_s, 2),
    }


def _about(config: Config, directory: Path) -> dict[str, object]:
    strategy = config.train.strategy
    return {"strategy": strategy, "world_size": 1, "model_hash": model_hash(directory)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--storage", default="", help="where to; none: a folder of this machine")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cases = []
    for method in ("full", "lora"):
        with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as name:
            folder = Path(name)
            storage = given.storage or str(folder / "storage")
            cases.append(measure(method, given.steps, storage, folder))
    kind = "object storage" if given.storage else "a folder"
    found = {"every": EVERY, "storage": kind, "cases": cases, "conditions": conditions()}
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
