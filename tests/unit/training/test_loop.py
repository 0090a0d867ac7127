"""The training step under Lightning's own loop."""

from pathlib import Path

import pytest
import torch

from dreambooth_ray.storage.store import Store
from tests.unit.training.fitted import Fitted


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_step_is_taken_with_a_gradient_beyond_the_bound(
    tiny_model: Path, photos: Path, priors: Store, accumulate: int
) -> None:
    run = Fitted(
        tiny_model, photos, priors, "train.max_grad_norm=0.01", "train.steps=3",
        f"train.accumulate={accumulate}",
    )  # fmt: skip
    assert min(r["grad_norm"] for r in run.watch.records) > 0.02
    assert len(run.watch.norms) == 3
    assert max(run.watch.norms) <= 0.01 * (1 + 1e-4)


def test_parts_of_a_step_add_up_to_it(tiny_model: Path, photos: Path, priors: Store) -> None:
    single = Fitted(tiny_model, photos, priors, "train.steps=2")
    parted = Fitted(tiny_model, photos, priors, "train.steps=2", "train.accumulate=2")
    assert parted.losses() == pytest.approx(single.losses(), rel=1e-3)
    assert [r["images_seen"] for r in parted.watch.records] == [4, 8]
    norms = [[r["grad_norm"] for r in run.watch.records] for run in (single, parted)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_resumed_adapter_with_its_average_goes_on_bit_for_bit(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    state = tmp_path / "state.ckpt"
    overrides = (
        "train.method=lora", "train.ema_decay=0.9", "identifier.kind=learned", "train.steps=4",
        "train.lr_schedule=cosine", "train.lr_warmup_steps=1",
    )  # fmt: skip
    full_run = Fitted(tiny_model, photos, priors, *overrides, save=state)
    assert state.stat().st_size < 2_000_000
    resumed = Fitted(tiny_model, photos, priors, *overrides, resume=state)
    assert resumed.watch.records == full_run.watch.records[2:]
    assert all(torch.equal(w, resumed.weights[n]) for n, w in full_run.weights.items())
    averages = [run.module.average.weights for run in (full_run, resumed)]  # type: ignore[union-attr]
    assert averages[0].keys() == full_run.weights.keys()
    assert all(torch.equal(w, averages[1][n]) for n, w in averages[0].items())
    assert not any(torch.equal(w, averages[0][n]) for n, w in full_run.weights.items())


def test_less_memory_and_less_precision_come_to_about_the_same(
    tiny_model: Path, photos: Path, priors: Store
) -> None:
    plain, spared, coarse = (
        Fitted(tiny_model, photos, priors, "train.steps=1", override).losses()
        for override in (
            "seed=0",
            "train.gradient_checkpointing=true",
            "train.precision=bf16-mixed",
        )
    )
    assert spared == pytest.approx(plain, rel=1e-5)
    assert coarse == pytest.approx(plain, rel=0.05)
    assert coarse != plain


@pytest.mark.parametrize("model", ["sd15", "sd21"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_published_models_learn(
    request: pytest.FixtureRequest, photos: Path, model: str, method: str
) -> None:
    directory: Path = request.getfixturevalue(model)
    class_images: Store = request.getfixturevalue(f"{model}_priors")
    run = Fitted(
        directory, photos, class_images, "train.steps=3", f"train.method={method}",
        "train.text_encoder=true", "identifier.kind=learned",
    )  # fmt: skip
    losses = run.losses()
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)
    assert any(weight.grad is not None for weight in run.module.parameters())


RATES = {
    "rates": ("train.lr=1e-2", "train.text_encoder_lr=2e-3", "train.weight_decay=0.5"),
    "more steps": ("train.steps=8",),
    "a schedule": ("train.lr_schedule=linear", "train.lr_warmup_steps=3"),
}


@pytest.mark.parametrize("changes", RATES.values(), ids=RATES)
def test_a_run_goes_on_at_the_rates_that_it_is_given_now(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    state = tmp_path / "state.ckpt"
    base = (
        "train.method=lora", "train.text_encoder=true", "train.text_encoder_lr=1e-4",
        "train.lr_schedule=cosine", "train.steps=4",
    )  # fmt: skip
    Fitted(tiny_model, photos, priors, *base, save=state)
    resumed = Fitted(tiny_model, photos, priors, *base, *changes, resume=state)
    fresh = Fitted(tiny_model, photos, priors, *base, *changes)
    rates = [
        [(record["lr"], record["text_encoder_lr"]) for record in run.watch.records]
        for run in (fresh, resumed)
    ]
    assert rates[1] == rates[0][2:]
    for group, expected in zip(
        resumed.trainer.optimizers[0].param_groups,
        fresh.trainer.optimizers[0].param_groups,
        strict=True,
    ):
        for name in ("lr", "initial_lr", "weight_decay"):
            assert group[name] == expected[name]


def test_an_average_may_begin_when_a_run_goes_on(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    state = tmp_path / "state.ckpt"
    base = ("train.method=lora", "train.steps=4")
    Fitted(tiny_model, photos, priors, *base, save=state)
    resumed = Fitted(tiny_model, photos, priors, *base, "train.ema_decay=0.9", resume=state)
    average = resumed.module.average
    assert average is not None and average.weights.keys() == resumed.weights.keys()
