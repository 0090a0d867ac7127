from pathlib import Path

import pytest
import torch

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.training import ValidationConfig
from dreambooth_ray.data.subject import read_photographs_for_subject_config, split_photographs
from dreambooth_ray.errors import ConfigError, DataError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.side_work import SideWork
from dreambooth_ray.training.callbacks.validation import compute_validation_losses
from dreambooth_ray.training.early_stopping import find_stop_step, list_validation_losses
from tests.unit.training.fitted import Fitted

OVERRIDES = (
    "validation.every=2", "validation.held_out=1", "validation.class_images=2", "prior.count=5",
    "validation.timesteps=4", "validation.bins=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_model: Path, photos: Path, priors: Store) -> Fitted:
    return Fitted(tiny_model, photos, priors, *OVERRIDES, "train.steps=3", "train.ema_decay=0.9")


def test_losses_of_both_halves_by_noise_level_are_in_the_records(run: Fitted) -> None:
    validated = [r["step"] for r in run.watch.records if "val_loss" in r]
    assert validated == [2, 3]
    record = run.watch.records[-1]
    for half in ("instance", "prior"):
        bins = [record[f"val_{half}_loss_bin{k}"] for k in (0, 1)]
        assert sum(bins) / 2 == pytest.approx(record[f"val_{half}_loss"], rel=1e-5)
    assert record["val_loss"] == pytest.approx(
        record["val_instance_loss"] + record["val_prior_loss"], rel=1e-6
    )


def test_examples_are_fixed_and_use_the_averaged_weights(run: Fitted) -> None:
    before = {n: w.clone() for n, w in run.weights.items()}
    losses = compute_validation_losses(
        run.trainer, run.module, SideWork(Store("memory://validation")), run.validation_set
    )
    record = run.watch.records[-1]
    assert losses == {k: v for k, v in record.items() if k.startswith("val_")}
    assert all(torch.equal(w, before[n]) for n, w in run.weights.items())
    average, run.module.average = run.module.average, None
    assert (
        compute_validation_losses(
            run.trainer, run.module, SideWork(Store("memory://validation")), run.validation_set
        )
        != losses
    )
    run.module.average = average


def test_what_is_validated_is_not_trained_on(run: Fitted) -> None:
    batches = run.validation_set.make_all_batches()
    assert run.validation_set.num_examples == (1 + 2) * 4
    assert sum(len(b.latents) - b.num_photographs for b in batches) >= 2 * 4
    dataset = run.trainer.train_dataloader.dataset
    assert len(dataset._photographs[0].images) == 2
    assert {dataset._priors.choose_index(0, position) for position in range(9)} == {0, 1, 2}


def test_a_run_that_gets_no_better_ends_there(
    tiny_model: Path, photos: Path, priors: Store
) -> None:
    run = Fitted(
        tiny_model, photos, priors, *OVERRIDES, "train.steps=9", "validation.every=1",
        "validation.patience=2", "validation.min_delta=1000", "train.lr=1e-9",
    )  # fmt: skip
    assert [r["step"] for r in run.watch.records] == [1, 2, 3]
    losses = list_validation_losses(run.watch.records)
    assert find_stop_step(losses, run.module.config.validation) == 3
    assert find_stop_step(losses[:2], run.module.config.validation) is None


def test_when_to_stop_is_a_function_of_the_losses() -> None:
    losses = [(10, 5.0), (20, 4.0), (30, 4.05), (40, 3.99), (50, 4.2)]
    assert find_stop_step(losses, ValidationConfig(every=10, patience=1)) == 30
    assert find_stop_step(losses, ValidationConfig(every=10, patience=2)) is None
    assert find_stop_step(losses, ValidationConfig(every=10, patience=2, min_delta=0.1)) == 40
    assert find_stop_step(losses, ValidationConfig(every=10)) is None
    nan = float("nan")
    assert (
        find_stop_step([(1, 1.0), (2, nan), (3, nan)], ValidationConfig(every=1, patience=2)) == 3
    )


def test_something_must_be_left_to_train_on(photos: Path) -> None:
    text = f"subject: {{photos: {photos}, class_noun: robot}}\ntrain: {{resolution: 64}}"
    config = parse_config(text, "x", ["validation.every=5", "validation.held_out=3"])
    with pytest.raises(DataError, match="leaves none of the 3 photographs"):
        split_photographs(config, read_photographs_for_subject_config(config, config.subject))
    with pytest.raises(ConfigError, match=r"less validation\.class_images=4"):
        parse_config(text, "x", ["validation.every=5", "prior.count=4"])
    with pytest.raises(ConfigError, match=r"validation\.bins=3"):
        parse_config(text, "x", ["validation.bins=3"])
    with pytest.raises(ConfigError, match=r"set validation\.every"):
        parse_config(text, "x", ["validation.patience=3"])
