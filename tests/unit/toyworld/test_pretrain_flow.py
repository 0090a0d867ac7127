"""The flow model's training: resumed, averaged and saved as diffusers' own pipeline."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import load_file

from dreambooth_ray.errors import DataError
from dreambooth_ray.toyworld import pretrain_flow
from dreambooth_ray.toyworld.flow_dataset import FlowDataset, load_flow_dataset
from dreambooth_ray.toyworld.flow_tokenizer import new_flow_tokenizer
from dreambooth_ray.toyworld.pretrain_flow import (
    FlowPretrainSettings,
    compute_rate_factor,
    new_flow_trainer,
    train,
)


def new_narrow_transformer(latent_channels: int) -> ZImageTransformer2DModel:
    return ZImageTransformer2DModel(
        in_channels=latent_channels,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=1,
        n_kv_heads=1,
        cap_feat_dim=128,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 64, 64],
    )


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_flow, "new_transformer", new_narrow_transformer)


@pytest.fixture
def run(tmp_path: Path) -> FlowPretrainSettings:
    (tmp_path / "snapshots").mkdir()
    return FlowPretrainSettings(
        work=tmp_path,
        weights=tmp_path / "weights",
        snapshots=tmp_path / "snapshots",
        seed=1,
        num_images=16,
        batch_size=4,
        learning_rate=1e-3,
        started=time.monotonic(),
        budget_s=60.0,
        reserve_s=0.0,
        workers=1,
        device=torch.device("cpu"),
        compiled=False,
        num_scored=4,
    )


def new_dataset() -> FlowDataset:
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 8, 16, 16, generator=rng).half()
    token_ids = torch.randint(400, (8, 4, 32), generator=rng, dtype=torch.int16)
    return FlowDataset(latents, token_ids, torch.full((32,), 465, dtype=torch.int16), 465)


def stop_at(monkeypatch: pytest.MonkeyPatch, last_step: int) -> None:
    """The clock of the training jumps past its end at a step."""
    real = pretrain_flow.take_step

    def take_step(run, trainer, batch, rate):  # type: ignore[no-untyped-def]
        loss = real(run, trainer, batch, rate)
        if trainer.step == last_step - 1:
            monkeypatch.setattr(pretrain_flow, "time", Clock(time.monotonic() + 1e6))
        return loss

    monkeypatch.setattr(pretrain_flow, "take_step", take_step)


class Clock:
    def __init__(self, now: float) -> None:
        self.monotonic = lambda: now


def test_a_batch_is_a_function_of_seed_and_step_and_drops_captions() -> None:
    dataset = new_dataset()
    one, same, other = (dataset.make_training_batch(3, step, 400) for step in (7, 7, 8))
    assert torch.equal(one.noise, same.noise)
    assert torch.equal(one.token_ids, same.token_ids)
    assert not torch.equal(one.noise, other.noise)
    is_empty = (one.token_ids == 465).all(dim=1).float().mean()
    assert 0.05 < float(is_empty) < 0.15
    assert torch.histc(one.sigma, 8, 0, 1).tolist() == [50] * 8


def test_the_rate_warms_up_by_steps_and_falls_with_the_time() -> None:
    assert compute_rate_factor(0, 0.0) == pytest.approx(1 / 300)
    assert compute_rate_factor(1000, 0.0) == 1.0
    assert compute_rate_factor(1000, 0.5) == pytest.approx(0.505)
    assert compute_rate_factor(1000, 1.0) == pytest.approx(0.01)


def test_a_training_goes_on_from_its_checkpoint(
    run: FlowPretrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_flow_trainer(run, new_flow_tokenizer(), 8)
    stop_at(monkeypatch, 3)
    train(run, trainer, new_dataset())
    pretrain_flow.write_weights_snapshot(run, trainer)
    resumed = new_flow_trainer(run, new_flow_tokenizer(), 8)
    assert (resumed.step, resumed.trained_s) == (3, trainer.trained_s)
    assert all(
        torch.equal(a, b)
        for a, b in zip(resumed.loss.parameters(), trainer.loss.parameters(), strict=True)
    )
    # What it had trained counts: nothing of the budget is left.
    train(run, resumed, new_dataset())
    assert resumed.step == 3


def test_snapshots_are_the_average_and_begin_another_training(
    run: FlowPretrainSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = new_flow_trainer(run, new_flow_tokenizer(), 8)
    stop_at(monkeypatch, 2)
    train(run, trainer, new_dataset())
    pretrain_flow.write_weights_snapshot(run, trainer)
    state = load_file(run.snapshots / "transformer.safetensors")
    averaged = trainer.averaged.transformer.state_dict()
    assert state.keys() == averaged.keys()
    assert all(torch.equal(state[k], averaged[k].half()) for k in state)
    second = replace(run, work=tmp_path / "second", start_from=run.snapshots)
    begun = new_flow_trainer(second, new_flow_tokenizer(), 8)
    assert begun.step == 0
    key = "layers.0.attention.to_q.weight"
    assert torch.equal(begun.loss.transformer.state_dict()[key], state[key].float())


def test_a_folder_without_snapshots_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"transformer\.safetensors is not there"):
        pretrain_flow.export_flow(tmp_path, tmp_path / "weights")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
def test_gradients_that_do_not_compile_are_computed_without(run: FlowPretrainSettings) -> None:
    def fails(*_: object) -> Any:
        raise RuntimeError("no compiler here")

    run = replace(run, compiled=True)
    trainer = new_flow_trainer(run, new_flow_tokenizer(), 8)
    trainer.loss.transformer.compile_repeated_blocks(backend=fails)
    batch = new_dataset().make_training_batch(1, 0, 2)
    with torch.compiler.set_stance("default"):  # put back at the end
        assert torch.isfinite(pretrain_flow.take_step(run, trainer, batch, 1e-3))
    assert "no compiler here" in (run.snapshots / "flow-log.txt").read_text()


def test_from_nothing_to_a_directory_that_diffusers_loads(
    run: FlowPretrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 2)
    pretrain_flow.pretrain_flow(run)
    pipeline = ZImagePipeline.from_pretrained(run.weights / "flow-pipeline")
    image = pipeline("a red robot", height=64, width=64, num_inference_steps=1).images[0]
    assert image.size == (64, 64)
    assert load_flow_dataset(run.work, new_flow_tokenizer(), run.device).latents.shape[0] == 16
    assert set(json.loads((run.snapshots / "flow-scores.json").read_text())) == {
        "class",
        "colour",
        "pattern",
        "background",
    }
    assert (run.snapshots / "flow-samples.png").is_file()
