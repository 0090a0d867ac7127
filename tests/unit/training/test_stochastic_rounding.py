"""Trained weights in bfloat16: what small steps add up to is kept, and a resume is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.optimizers import TRAITS
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.memory.training_memory import estimate_training_footprint
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training import stochastic_rounding
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.nan_guard import SKIPPED
from dreambooth_ray.training.stochastic_rounding import (
    StochasticRoundingOptimizer,
    compute_gradient_norm,
    round_stochastically,
)
from tests.unit.training.fitted import Fitted

ROUNDED = "train.precision=bf16-mixed", "train.weight_dtype=bfloat16"
OPTIMIZERS = [name for name, traits in TRAITS.items() if traits.is_separable]
# The others in the long tests.
DAILY = [
    pytest.param(name, marks=() if name == "adafactor" else pytest.mark.fault)
    for name in OPTIMIZERS
]


def make_config(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: robot}", "x", list(overrides))


def make_module(model: Path, *overrides: str) -> DreamBoothModule:
    config = make_config("train.resolution=64", *overrides)
    parts = load_components(model)
    apply_train_method(config, parts)
    return DreamBoothModule(config, parts)


def test_small_steps_are_lost_to_the_nearest_and_kept_in_the_mean() -> None:
    """200 steps of 1e-4 from 1, where bfloat16 has the numbers 1 and 1.0078."""
    means = []
    for is_rounded in (False, True):
        weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer: torch.optim.Optimizer = torch.optim.SGD([weight], lr=1e-4)
        if is_rounded:
            optimizer = StochasticRoundingOptimizer(optimizer, 0)
        for _ in range(200):
            weight.grad = -torch.ones_like(weight)
            optimizer.step()
        means.append(float(weight.detach().float().mean()))
    nearest, stochastic = means
    assert nearest == 1.0
    # The mean of 4096 has a deviation of 2e-4.
    assert stochastic == pytest.approx(1.02, abs=1e-3)


@given(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))
def test_a_number_goes_to_one_of_its_neighbours(value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.full((4096,), value)
    rounded = round_stochastically(values, generator).float()
    nearest = values[:1].bfloat16()
    if float(nearest.float()) == value:
        assert bool((rounded == value).all())
        return
    below, above = float(rounded.min()), float(rounded.max())
    assert below <= value <= above or below == above
    assert above - below <= abs(value) * 2**-7
    spread = max(above - below, abs(value) * 2**-8)
    # Four deviations of the mean, which are at most half of the spread each.
    assert float(rounded.double().mean()) == pytest.approx(value, abs=4 * spread / 2 / 64)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_is_that_of_float32_rounded(
    tiny_model: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = f"train.optimizer={optimizer}", "train.lr=1e-3"
    rounded = make_module(tiny_model, *settings, *ROUNDED)
    plain = make_module(tiny_model, *settings, "train.precision=bf16-mixed")
    steps = [module.configure_optimizers()["optimizer"] for module in (rounded, plain)]
    generator = torch.Generator().manual_seed(0)
    # Some chunks of several weights, and some of one.
    monkeypatch.setattr(stochastic_rounding, "_CHUNK_SIZE", 3000)
    num_halves = 0
    for weight, other in zip(rounded.parameters(), plain.parameters(), strict=True):
        other.data.copy_(weight)
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        other.grad = weight.grad.float()
        num_halves += weight.dtype == torch.bfloat16
    assert 0 < num_halves < len(list(rounded.parameters()))
    for step in steps:
        step.step()
    for weight, other in zip(rounded.parameters(), plain.parameters(), strict=True):
        if weight.dtype == torch.float32:
            assert torch.equal(weight, other)
            continue
        # Not further than a number of bfloat16.
        distances = (weight.detach().double() - other.detach().double()).abs()
        assert bool((distances <= other.detach().double().abs() * 2**-7).all())
        kept, expected = (s.state[w] for s, w in zip(steps, (weight, other), strict=True))
        assert kept.keys() == expected.keys()
        for key, value in kept.items():
            if isinstance(value, Tensor):
                assert torch.equal(value, expected[key]) and value.dtype == torch.float32


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.optimizer=adamw", "train.method=full", "train.ema_decay=0.9"),
        ("train.optimizer=adafactor", "train.method=full", "train.accumulate=2"),
        ("train.optimizer=lion", "train.method=lora", "identifier.kind=learned"),
        pytest.param(
            ("train.method=lora", "train.lora.dora=true", "prior.kind=both"),
            marks=pytest.mark.fault,
        ),
        pytest.param(
            ("train.method=kv", "train.gradient_checkpointing=true", "train.lr_warmup_steps=2"),
            marks=pytest.mark.fault,
        ),
    ],
    ids=["adamw-full", "adafactor-full", "lion-word", "dora", "kv"],
)
def test_a_resumed_run_goes_on_bit_for_bit(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    state = tmp_path / "state.ckpt"
    overrides = (*ROUNDED, *overrides, "train.steps=4", "tracking.loggers=[]")
    whole = Fitted(tiny_model, photos, priors, *overrides, save=state)
    resumed = Fitted(tiny_model, photos, priors, *overrides, resume=state)
    assert resumed.watch.records == whole.watch.records[2:]
    dtypes = {weight.dtype for weight in whole.weights.values()}
    assert torch.bfloat16 in dtypes
    assert all(torch.equal(w, resumed.weights[n]) for n, w in whole.weights.items())
    kept: Any = [run.trainer.optimizers[0].state for run in (whole, resumed)]
    for one, other in zip(kept[0].values(), kept[1].values(), strict=True):
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(other[k]))
                   for k, v in one.items())  # fmt: skip
        assert all(v.dtype == torch.float32 for v in other.values() if isinstance(v, Tensor))
    if whole.module.average is not None:
        assert all(w.dtype == torch.float32 for w in whole.module.average.weights.values())


def test_another_seed_rounds_otherwise() -> None:
    weights = []
    for seed in (0, 0, 1):
        weight = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
        weight.grad = torch.ones_like(weight)
        optimizer = StochasticRoundingOptimizer(torch.optim.SGD([weight], lr=2e-3), seed)
        optimizer.step()
        weights.append(weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("optimizer", DAILY)
def test_a_gradient_that_is_no_number_changes_no_weight(
    tiny_model: Path, photos: Path, priors: Store, broken_steps: set[int], optimizer: str
) -> None:
    broken_steps.add(2)
    overrides = (*ROUNDED, f"train.optimizer={optimizer}", "train.method=kv", "train.steps=3")
    run = Fitted(tiny_model, photos, priors, *overrides, "tracking.loggers=[]")
    assert [record.get(SKIPPED) for record in run.watch.records] == [None, 1, 1]
    assert all(bool(weight.isfinite().all()) for weight in run.weights.values())


@pytest.mark.parametrize("optimizer", DAILY)
def test_the_prediction_of_memory_has_halved_weights(tiny_model: Path, optimizer: str) -> None:
    settings = "train.resolution=64", f"train.optimizer={optimizer}"
    module = make_module(tiny_model, *settings, *ROUNDED)
    step: Any = module.configure_optimizers()["optimizer"]
    weights_bytes = sum(weight.nbytes for weight in module.parameters())
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    step.step()
    kept_bytes = sum(
        value.nbytes for state in step.state.values() for value in state.values()
        if isinstance(value, Tensor) and value.dim()
    )  # fmt: skip
    footprints = [
        estimate_training_footprint(make_config(*settings, *overrides), tiny_model)
        for overrides in (ROUNDED, ROUNDED[:1])
    ]
    assert footprints[0].states_bytes == pytest.approx(weights_bytes + kept_bytes, rel=0.01)
    assert footprints[0].activations_bytes < footprints[1].activations_bytes


def test_a_norm_has_the_digits_of_float32() -> None:
    gradients = [torch.full((300,), 0.1), torch.full((77,), 0.1, dtype=torch.bfloat16)]
    expected = torch.cat([g.double() for g in gradients]).norm()
    assert float(compute_gradient_norm(gradients)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("train.precision=32",), r"needs train\.precision=bf16-mixed, and it is 32"),
        (("train.strategy=fsdp2",), r"needs train\.strategy=ddp: train\.strategy=fsdp2"),
        (("train.strategy=deepspeed",), r"needs train\.strategy=ddp"),
        (("train.optimizer=prodigy", "train.lr=1"), r"can't be stepped by train\.optimizer=prodi"),
        (("train.optimizer=schedulefree-adamw",), "take one of adamw, adafactor, lion"),
        (("train.optimizer=adamw8bit",), r"can't be stepped by train\.optimizer=adamw8bit"),
        (("train.method=lora", "train.lora.kind=loha"), r"train\.lora\.kind=loha has none of"),
        (("identifier.kind=learned", "train.unet=false", "train.text_encoder=false"),
         "a word alone is learnt"),
        (("train.precision=16-mixed",), "and it is 16-mixed"),
    ],
)  # fmt: skip
def test_what_can_not_be_rounded_is_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(*ROUNDED, "cluster.gpus=true", *overrides)
