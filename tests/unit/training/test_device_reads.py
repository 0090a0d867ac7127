"""A step reads nothing from its device. The meta device has no values: whoever reads one raises."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_ray.models.conditioning import Conditioning
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.callbacks.step_metrics import READ_EVERY, StepMetrics
from dreambooth_ray.training.metrics_log import read_metrics
from dreambooth_ray.training.module import DreamBoothModule
from tests.unit.training.fitted import Fitted
from tests.unit.training.test_module import module_of

KINDS = {
    "full": (),
    "lora": ("train.method=lora",),
    "dora": ("train.method=lora", "train.lora.dora=true"),
    "kv": ("train.method=kv",),
    "word": ("train.method=lora", "train.text_encoder=true", "identifier.kind=learned"),
    "losses": ("loss.min_snr_gamma=5", "loss.huber_delta=0.5", "loss.zero_terminal_snr=true"),
    "checkpointing": ("train.gradient_checkpointing=true",),
}


def make_batch(module: DreamBoothModule, device: str) -> Batch:
    ids = Conditioning({"input_ids": torch.full((3, 16), 5, device=device)})
    hidden = Conditioning({"hidden": torch.ones(3, 16, 32, device=device)})
    return Batch(
        latents=torch.randn(3, 4, 16, 16, device=device),
        noise=torch.randn(3, 4, 16, 16, device=device),
        times=torch.full((3,), 40, device=device),
        tokens=ids if module.text_encoders else None,
        conditioning=None if module.text_encoders else hidden,
        frames=torch.zeros(3, 6, dtype=torch.int64, device=device),
        num_photographs=2,
        step=0,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_between_forward_and_optimizer_step(
    tiny_model: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # These kernels take meta tensors as well, though torch does not list that device.
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda _: True)
    module = module_of(tiny_model, *KINDS[kind], "train.max_grad_norm=0.1").to("meta")
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=False)
    optimizer.defaults["fused"] = True  # there is no fused kernel on the meta device
    trainer: Any = SimpleNamespace(world_size=1, global_step=1)
    metrics = StepMetrics()
    for _ in range(2):
        module.training_step(make_batch(module, "meta"), 0).backward()
        module.configure_gradient_clipping(optimizer)
        assert optimizer.found_inf.device.type == "meta"  # type: ignore[attr-defined]
        del optimizer.found_inf  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        metrics.add(trainer, module, {}, wants_stop=True)
    assert not metrics.is_due(READ_EVERY - 1, module.device)
    assert metrics.is_due(READ_EVERY, module.device)
    with pytest.raises(RuntimeError, match="meta"):
        metrics.read(lambda *_: {})


# Not dora: peft asks of its weights which package their type is from, which is a graph break.
@pytest.mark.parametrize(
    "is_parted", [pytest.param(False, marks=pytest.mark.fault), True], ids=["whole", "parted"]
)
@pytest.mark.parametrize("kind", ["word", "losses"])
def test_forward_and_loss_are_one_graph(tiny_model: Path, kind: str, is_parted: bool) -> None:
    # So few steps that no forward is recorded, as none is on a GPU.
    module = module_of(tiny_model, *KINDS[kind], "train.steps=10")
    batch = make_batch(module, "cpu")
    if is_parted:
        batch.weights = torch.full((3, 1, 16, 16), 0.5)
        batch.others = [make_batch(module, "cpu")]

    def forward(batch: Batch) -> tuple[Tensor, Tensor]:
        return module.compute_loss(batch)

    torch._dynamo.reset()
    loss, halves = torch.compile(forward, fullgraph=True, backend="eager")(batch)
    plain_loss, plain_halves = module.compute_loss(batch)
    assert torch.equal(loss, plain_loss)
    assert torch.equal(halves, plain_halves)


def test_a_request_to_stop_comes_with_the_metrics(tiny_model: Path) -> None:
    module = module_of(tiny_model, "train.method=kv", "train.steps=10")
    trainer: Any = SimpleNamespace(world_size=1, global_step=1)
    metrics = StepMetrics(read_every=2)
    module.training_step(make_batch(module, "cpu"), 0).backward()
    module.configure_gradient_clipping(module.configure_optimizers()["optimizer"])
    metrics.add(trainer, module, {"extra": 1.0}, wants_stop=True)
    assert not metrics.is_stop_requested
    assert metrics.read(lambda step, *_: {"step": step}) == [{"step": 1, "extra": 1.0}]
    assert metrics.is_stop_requested
    assert metrics.read(lambda *_: {}) == []


def test_metrics_read_once_in_a_while_are_those_read_at_once(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    overrides = ("train.steps=7", "checkpoint.every=4", "validation.every=3", "prior.count=5")
    overrides += ("validation.class_images=1", "validation.timesteps=4", "tracking.loggers=[]")
    lines = []
    for read_every in (1, 5):
        run = Store(str(tmp_path / str(read_every)))
        Fitted(tiny_model, photos, priors, *overrides, track=run, keep=True, read_every=read_every)
        lines.append(run.read("metrics.jsonl"))
        assert [r["step"] for r in read_metrics(run)] == [1, 2, 3, 4, 5, 6, 7]
    assert lines[0] == lines[1]
