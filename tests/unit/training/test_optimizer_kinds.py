"""Each optimizer that can be configured: it trains, resumes exactly, and is predicted in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.optimizers import TRAITS
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.memory.training_memory import estimate_training_footprint
from dreambooth_ray.models.components import load_components
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.convert import load_trained_weights
from dreambooth_ray.training.module import DreamBoothModule
from dreambooth_ray.training.nan_guard import SKIPPED
from tests.unit.training.fitted import Fitted

# What a CPU can step, each with the weights that it is tried with. Convolutions have four axes.
CASES = [("adafactor", "full"), ("lion", "lora"), ("schedulefree-adamw", "lora"),
         ("prodigy", "lora")]  # fmt: skip
SCHEDULE_FREE = "train.optimizer=schedulefree-adamw"


def make_config(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: robot}", "x", list(overrides))


def settings_of(optimizer: str) -> tuple[str, ...]:
    """Skips the test where the optimizer's package is not installed."""
    if package := TRAITS[optimizer].package:
        pytest.importorskip(package)
    rates = ("train.lr=1",) if optimizer == "prodigy" else ()
    return (f"train.optimizer={optimizer}", *rates)


@pytest.mark.parametrize(("optimizer", "method"), CASES)
def test_a_resumed_run_goes_on_bit_for_bit(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path, optimizer: str, method: str
) -> None:
    state = tmp_path / "state.ckpt"
    overrides = (*settings_of(optimizer), f"train.method={method}", "train.steps=4",
                 "train.lr_warmup_steps=2", "train.text_encoder=false")  # fmt: skip
    full_run = Fitted(tiny_model, photos, priors, *overrides, save=state)
    resumed = Fitted(tiny_model, photos, priors, *overrides, resume=state)
    assert resumed.watch.records == full_run.watch.records[2:]
    before = load_trained_weights(state)["unet"]
    moved = [not torch.equal(w, before[n.removeprefix("unet.")])
             for n, w in full_run.weights.items()]  # fmt: skip
    assert sum(moved) > 0.9 * len(moved)
    assert all(torch.equal(w, resumed.weights[n]) for n, w in full_run.weights.items())


# Prodigy keeps one number of a weight that begins at zero.
@pytest.mark.parametrize(("optimizer", "method"), [*CASES[:-1], ("adafactor", "lora")])
def test_the_prediction_of_memory_has_what_the_optimizer_keeps(
    tiny_model: Path, optimizer: str, method: str
) -> None:
    config = make_config(*settings_of(optimizer), f"train.method={method}", "train.resolution=64")
    parts = load_components(tiny_model)
    apply_train_method(config, parts)
    module = DreamBoothModule(config, parts)
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    step: Any = module.configure_optimizers()["optimizer"]
    for weight in trained:
        weight.grad = torch.ones_like(weight)
    step.step()
    kept_bytes = sum(
        value.nbytes
        for state in step.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    )
    weights_bytes = sum(weight.nbytes for weight in trained)
    predicted_bytes = estimate_training_footprint(config, tiny_model).states_bytes
    assert predicted_bytes == pytest.approx(weights_bytes + kept_bytes, rel=0.01)


def test_an_average_is_looked_at_and_bundled_and_changes_no_step(
    tiny_model: Path, photos: Path, priors: Store, tmp_path: Path
) -> None:
    """Validation, and what a bundle is made of; the optimizer's own `eval` knows the average."""
    settings_of("schedulefree-adamw")
    overrides = (SCHEDULE_FREE, "train.method=lora", "train.steps=4", "prior.count=4",
                 "train.lr_warmup_steps=1", "validation.class_images=1",
                 "validation.timesteps=4")  # fmt: skip
    looked_at, plain = (
        Fitted(tiny_model, photos, priors, *overrides, f"validation.every={every}",
               save=tmp_path / f"{every}.ckpt")
        for every in (1, 4)
    )  # fmt: skip
    assert all(torch.equal(w, plain.weights[n]) for n, w in looked_at.weights.items())
    average = plain.module.average
    assert average is not None
    averages = dict(average.weights)
    assert averages.keys() == plain.weights.keys()
    assert not any(torch.equal(w, averages[n]) for n, w in plain.weights.items())
    with plain.module.using_averaged_weights():
        assert all(torch.equal(w, averages[n]) for n, w in plain.weights.items())
    plain.trainer.save_checkpoint(tmp_path / "last.ckpt")
    bundled = load_trained_weights(tmp_path / "last.ckpt")["unet"]
    assert all(torch.equal(bundled[n.removeprefix("unet.")], w) for n, w in averages.items())
    optimizer: Any = plain.trainer.optimizers[0]
    optimizer.eval()
    for name, weight in plain.weights.items():
        torch.testing.assert_close(weight, averages[name], rtol=1e-6, atol=1e-9)


def test_the_first_step_of_an_average_is_the_weights_themselves(tiny_model: Path) -> None:
    settings_of("schedulefree-adamw")
    config = make_config(SCHEDULE_FREE)
    parts = load_components(tiny_model)
    apply_train_method(config, parts)
    module = DreamBoothModule(config, parts)
    module.configure_optimizers()
    before = [weight.detach().clone() for weight in module.parameters()]
    with module.using_averaged_weights():
        assert all(map(torch.equal, module.parameters(), before))


@pytest.mark.parametrize("optimizer", ["adafactor", "lion", "schedulefree-adamw"])
def test_a_gradient_that_is_no_number_changes_no_weight(
    tiny_model: Path, photos: Path, priors: Store, broken_steps: set[int], optimizer: str
) -> None:
    broken_steps.add(2)
    overrides = (*settings_of(optimizer), "train.method=kv", "train.steps=3")
    run = Fitted(tiny_model, photos, priors, *overrides, "tracking.loggers=[]")
    assert [record.get(SKIPPED) for record in run.watch.records] == [None, 1, 1]
    assert all(bool(weight.isfinite().all()) for weight in run.weights.values())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        *(
            ((f"train.optimizer={name}", "train.lr=1", f"train.strategy={strategy}"),
             f"train.optimizer={name} can't be sharded by train.strategy={strategy}")
            for name, traits in TRAITS.items()
            for strategy in ("fsdp2", "deepspeed")
            if strategy not in traits.strategies
        ),
        ((SCHEDULE_FREE, "train.lr_schedule=cosine"), "set train.lr_schedule=constant"),
        ((SCHEDULE_FREE, "train.ema_decay=0.9"), "unset train.ema_decay=0.9"),
        (("train.optimizer=sgd",), "train.optimizer"),
    ],
)  # fmt: skip
def test_what_an_optimizer_is_not_for_is_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config("cluster.gpus=true", *overrides)
