"""FSDP2 and ZeRO as one worker, in this process: what they save, compute and skip."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import distributed

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.trainable_params import apply_train_method, load_trainable_params
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import nan_guard
from dreambooth_ray.training.checkpoint.convert import load_trained_weights
from dreambooth_ray.training.metrics_log import SKIPPED
from dreambooth_ray.training.zero_strategy import ZeroPrecision
from tests.unit.training.fitted import SMALL, Fitted

FSDP2 = "train.strategy=fsdp2"
STAGES = [f"train.deepspeed.stage={stage}" for stage in (2, 3)]


@pytest.fixture(autouse=True, scope="module")
def one_worker() -> Iterator[None]:
    """A group of this process alone, for all tests: DeepSpeed remembers the first it sees."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # Lightning and DeepSpeed leave ranks behind, which other libraries take for a group to join.
    with mock.patch.dict(os.environ), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
        # ZeRO 3 puts its own in this place for good; it rounds otherwise in bf16.
        patch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", port)
        yield
        distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["lora", "kv"])
def test_what_is_frozen_is_in_no_sharded_checkpoint_and_a_resume_goes_on_from_it(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path, method: str
) -> None:
    overrides = (FSDP2, f"train.method={method}", "train.steps=4", "tracking.loggers=[]")
    full_run = Fitted(tiny_model, photos, priors, *overrides, save=tmp_path / "state.ckpt")
    weights = load_trained_weights(tmp_path / "state.ckpt")
    text = f"subject: {{photos: {photos}, class_noun: robot}}"
    config = parse_config(text, "x", [*SMALL, *overrides])
    parts = load_components(tiny_model)
    apply_train_method(config, parts)
    load_trainable_params(parts, weights)  # raises for a weight too many or too few
    resumed = Fitted(tiny_model, photos, priors, *overrides, resume=tmp_path / "state.ckpt")
    assert resumed.watch.records == full_run.watch.records[2:]


def test_a_sharded_checkpoint_of_another_method_is_refused_by_name(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    overrides = (FSDP2, "train.steps=2", "tracking.loggers=[]")
    state = tmp_path / "state.ckpt"
    Fitted(tiny_model, photos, priors, *overrides, "train.method=lora", save=state)
    with pytest.raises(CheckpointError, match=r"attn2\.to_k\.weight.* another train\.method"):
        Fitted(
            tiny_model, photos, priors, *overrides, "train.method=kv", "train.steps=4", resume=state
        )


@pytest.mark.parametrize("stage", STAGES)
def test_parts_of_a_step_are_divided_once_and_bf16_is_that_of_ddp(
    tiny_model: Path, photos: Path, priors: Store, stage: str
) -> None:
    settings = ("train.steps=2", "train.accumulate=2", "train.precision=bf16-mixed")
    settings += ("validation.every=2", "validation.class_images=1", "validation.timesteps=4")
    zero = ("train.strategy=deepspeed", stage)
    ddp, sharded = (
        Fitted(tiny_model, photos, priors, *settings, "prior.count=4", *strategy).watch.records
        for strategy in ((), zero)
    )
    for one, other in zip(ddp, sharded, strict=True):
        assert other == pytest.approx(one, rel=2e-3)
    assert sharded[0]["grad_norm"] == pytest.approx(ddp[0]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("is_free_to_read", [True, False])
@pytest.mark.parametrize("strategy", [FSDP2, "train.strategy=deepspeed"])
def test_a_sharded_step_without_a_gradient_that_is_a_number_is_skipped(
    tiny_model: Path,
    photos: Path,
    priors: Store,
    strategy: str,
    is_free_to_read: bool,
    broken_steps: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the optimizer is told by a value on the device, as on a GPU."""
    monkeypatch.setattr(nan_guard, "FREE_TO_READ", {"cpu"} if is_free_to_read else set())
    broken_steps.add(2)
    run = Fitted(
        tiny_model, photos, priors, strategy, "train.steps=3", "tracking.loggers=[]",
        "train.method=kv",
    )  # fmt: skip
    assert [r.get(SKIPPED) for r in run.watch.records] == [None, 1, 1]
    assert all(bool(w.isfinite().all()) for w in run.weights.values())


def test_the_batch_keeps_its_precision_under_deepspeed(tiny_model: Path) -> None:
    """In bf16 the noise of the first timesteps has deviation 0, 0 and 0.0625."""
    schedule = load_components(tiny_model).schedule
    timesteps = torch.tensor([0, 1, 5])
    latents, noise = ZeroPrecision("bf16-mixed").convert_input(
        [torch.zeros(3, 1, 1, 1), torch.ones(3, 1, 1, 1)]
    )
    noisy = schedule.add_noise(latents, noise, timesteps).flatten()
    assert noisy.dtype == torch.float32
    assert noisy.tolist() == pytest.approx(
        (1 - schedule.alphas_cumprod[timesteps]).sqrt().tolist(), rel=1e-5
    )
    assert float(noisy[0]) > 0.02
