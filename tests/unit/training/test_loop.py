"""The training step under Lightning's own loop, one process, without Ray."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.data.priorset import PriorSet
from dreambooth_ray.data.subject import read_configured
from dreambooth_ray.diffusion.components import load_components
from dreambooth_ray.diffusion.methods import apply_method
from dreambooth_ray.priors.painter import Painter
from dreambooth_ray.priors.plan import PriorSpec
from dreambooth_ray.priors.pool import open_set
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.corpus import Corpus
from dreambooth_ray.training.module import DreamBoothModule

SMALL = ("train.resolution=64", "train.batch_size=2", "prior.count=3", "train.lr=1e-3")


class Watch(pl.Callback):
    """Keeps each step's record and the norm of the gradients it used; saves after step 2."""

    def __init__(self, save: Path | None) -> None:
        self.save = save
        self.records: list[dict[str, float]] = []
        self.norms: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch.ends_step:
            pl_module.note_step(trainer.global_step)
            self.records.append(pl_module.record)
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if self.save and trainer.global_step == 2:
                trainer.save_checkpoint(self.save)
            self.norms.append(float(torch.cat([g.flatten() for g in grads]).double().norm()))


class Fitted:
    def __init__(
        self,
        model: Path,
        photos: Path,
        priors: Store,
        *overrides: str,
        save: Path | None = None,
        resume: Path | None = None,
    ) -> None:
        base = f"subject: {{photos: {photos}, class_noun: robot}}"
        config = parse_config(base, "x", [*SMALL, *overrides])
        parts = load_components(model)
        apply_method(config, parts)
        photographs = [read_configured(config, config.subject)]
        corpus = Corpus(config, parts, photographs, PriorSet(priors, 3), (0, 1))
        self.module = DreamBoothModule(config, parts)
        self.watch = Watch(save)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.trainer = pl.Trainer(
                max_steps=config.train.steps, max_epochs=-1, accelerator="cpu", logger=False,
                accumulate_grad_batches=config.train.accumulate, precision=config.train.precision,
                gradient_clip_val=config.train.max_grad_norm, callbacks=[self.watch],
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            if resume:
                corpus.start = torch.load(resume, weights_only=True)["global_step"]
            loader = DataLoader(corpus, batch_size=None)
            self.trainer.fit(self.module, loader, ckpt_path=resume, weights_only=False)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}

    def losses(self) -> list[float]:
        return [r["loss"] for r in self.watch.records]


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory, other_model: Path) -> Store:
    """Three class images."""
    spec = PriorSpec("hash", ("a robot",), "ddim", 2, 3.0, 64, 0, 3)
    found = open_set(Store(str(tmp_path_factory.mktemp("priors"))), spec)
    Painter(str(other_model), found.uri, spec, gpu=False).paint(0)
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_is_taken_with_a_gradient_beyond_the_bound(
    other_model: Path, photos: Path, priors: Store, accumulate: int
) -> None:
    run = Fitted(
        other_model, photos, priors, "train.max_grad_norm=0.01", "train.steps=3",
        f"train.accumulate={accumulate}",
    )  # fmt: skip
    assert min(r["grad_norm"] for r in run.watch.records) > 0.02
    assert len(run.watch.norms) == 3
    assert max(run.watch.norms) <= 0.01 * (1 + 1e-4)


def test_parts_of_a_step_add_up_to_it(other_model: Path, photos: Path, priors: Store) -> None:
    whole = Fitted(other_model, photos, priors, "train.steps=2")
    parted = Fitted(other_model, photos, priors, "train.steps=2", "train.accumulate=2")
    assert parted.losses() == pytest.approx(whole.losses(), rel=1e-3)
    assert [r["images_seen"] for r in parted.watch.records] == [4, 8]
    norms = [[r["grad_norm"] for r in x.watch.records] for x in (whole, parted)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_resumed_adapter_with_its_average_goes_on_bit_for_bit(
    other_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    state = tmp_path / "state.ckpt"
    same = (
        "train.method=lora", "train.ema_decay=0.9", "identifier.kind=learned", "train.steps=4",
        "train.lr_schedule=cosine", "train.lr_warmup_steps=1",
    )  # fmt: skip
    whole = Fitted(other_model, photos, priors, *same, save=state)
    assert state.stat().st_size < 2_000_000
    rest = Fitted(other_model, photos, priors, *same, resume=state)
    assert rest.watch.records == whole.watch.records[2:]
    assert all(torch.equal(w, rest.weights[n]) for n, w in whole.weights.items())
    averages = [x.module.average.weights for x in (whole, rest)]  # type: ignore[union-attr]
    assert averages[0].keys() == whole.weights.keys()
    assert all(torch.equal(w, averages[1][n]) for n, w in averages[0].items())
    assert not any(torch.equal(w, averages[0][n]) for n, w in whole.weights.items())


def test_less_memory_and_less_precision_come_to_about_the_same(
    other_model: Path, photos: Path, priors: Store
) -> None:
    plain, spared, coarse = (
        Fitted(other_model, photos, priors, "train.steps=1", override).losses()
        for override in (
            "seed=0",
            "train.gradient_checkpointing=true",
            "train.precision=bf16-mixed",
        )
    )
    assert spared == pytest.approx(plain, rel=1e-5)
    assert coarse == pytest.approx(plain, rel=0.05)
    assert coarse != plain
