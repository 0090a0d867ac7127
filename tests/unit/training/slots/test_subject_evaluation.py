"""Validation losses and sample images of subjects that share a batch, against runs alone."""

from pathlib import Path

import numpy as np
import pytest

from dreambooth_ray.errors import DreamBoothError
from dreambooth_ray.models.components import load_components
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.callbacks.samples import TrainingImageSampler
from dreambooth_ray.training.slots.solo_network import SoloNetworkCache
from tests.unit.training.fitted import Fitted
from tests.unit.training.slots.slotted import LORA, Slotted
from tests.unit.training.slots.test_slot_trainer import assert_close

VALIDATED = (
    "validation.every=2", "validation.held_out=1", "validation.class_images=2",
    "validation.timesteps=4", "validation.bins=2", "prior.count=5",
)  # fmt: skip
SAMPLED = ("sample.every=3", "sample.num_inference_steps=2", "train.steps=3")
# Whether it stalls; the last never gets better by so much.
SUBJECTS = {
    "plain": (),
    "average": ("train.lora.rank=3", "train.ema_decay=0.5", "seed=4", "validation.every=3"),
    "impatient": ("validation.patience=1", "validation.min_delta=1000", "seed=6"),
}


def test_validation_losses_in_company_are_those_alone(
    tiny_model: Path, photos: Path, priors: Store
) -> None:
    shared = (*VALIDATED, "train.steps=5")
    slotted = Slotted(tiny_model, photos, priors, 3, *shared, rank=3)
    for name, overrides in SUBJECTS.items():
        slotted.join(name, *overrides)
    curves = slotted.run()
    for name, overrides in SUBJECTS.items():
        alone = Fitted(tiny_model, photos, priors, *LORA, *shared, *overrides)
        assert_close(curves[name], alone.watch.records)
    validated = {name: [r["step"] for r in c if "val_loss" in r] for name, c in curves.items()}
    assert validated == {"plain": [2, 4, 5], "average": [3, 5], "impatient": [2, 4]}
    assert len(curves["impatient"]) == 4


@pytest.mark.parametrize(
    "own",
    [(), ("train.lora.rank=3", "train.ema_decay=0.5")],
    ids=["plain", "average"],
)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_sample_images_in_company_are_those_alone(
    tiny_model: Path, photos: Path, priors: Store, own: tuple[str, ...], kind: str
) -> None:
    shared = (*SAMPLED, f"train.lora.dora={str(kind == 'dora').lower()}")
    slotted = Slotted(tiny_model, photos, priors, 3, *shared, rank=3)
    slotted.join("other", "seed=3")
    subject = slotted.join("own", "seed=5", *own)
    for _ in range(2):
        slotted.step()
        assert slotted.evaluations[subject].sample(subject) == []
    # The last step, before they leave.
    slotted.trainer.step()
    ((prompt, image),) = slotted.evaluations[subject].sample(subject)
    alone = Fitted(tiny_model, photos, priors, *LORA, *shared, "seed=5", *own)
    sampler = TrainingImageSampler(alone.module.config, tiny_model)
    ((expected_prompt, expected),) = sampler.sample_images(alone.module)
    assert prompt == expected_prompt
    assert np.abs(image.astype(int) - expected).max() <= 1
    other = next(s for s, name in slotted.names.items() if name == "other")
    ((_, others_image),) = slotted.evaluations[other].sample(other)
    assert np.abs(others_image.astype(int) - expected).max() > 1


def test_looks_at_one_subject_change_no_bit_of_any(
    tiny_model: Path, photos: Path, priors: Store
) -> None:
    curves = []
    for own in ((), (*VALIDATED[:1], *VALIDATED[2:], "sample.every=1")):
        slotted = Slotted(
            tiny_model, photos, priors, 3, "sample.num_inference_steps=2", "train.steps=4",
            "prior.count=5", "validation.class_images=2",
        )  # fmt: skip
        slotted.join("beside", "seed=2")
        slotted.join("looked at", *own)
        while slotted.trainer.subjects:
            for subject in slotted.trainer.subjects:
                slotted.evaluations[subject].sample(subject)
            slotted.step()
        curves.append(slotted.curves["beside"])
    assert curves[1] == curves[0]


def test_a_failed_look_ends_nothing(
    tiny_model: Path, photos: Path, priors: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    slotted = Slotted(tiny_model, photos, priors, 2, *VALIDATED, *SAMPLED)
    subject = slotted.join("one")

    def fail(*_: object) -> None:
        raise DreamBoothError("no memory for that")

    monkeypatch.setattr(SoloNetworkCache, "load", fail)
    while slotted.trainer.subjects:
        slotted.step()
    assert slotted.evaluations[subject].sample(subject) == []
    assert [record["step"] for record in slotted.curves["one"]] == [1, 2, 3]
    assert not any("val_loss" in record for record in slotted.curves["one"])
    assert slotted.evaluations[subject]._side_work.num_failures == 3


def test_a_network_is_made_once_for_each_kind_of_adapter(
    tiny_model: Path, photos: Path, priors: Store
) -> None:
    slotted = Slotted(tiny_model, photos, priors, 2, rank=3)
    networks = slotted.trainer.solo_networks
    first, second = slotted.join("first"), slotted.join("second", "train.lora.rank=3", "seed=3")
    components = [
        networks.load(subject.config, subject.view_bundle_weights()).components
        for subject in (first, second, first)
    ]
    assert components[0] is components[2]
    assert components[0] is not components[1]
    frozen = dict(load_components(tiny_model).denoiser.named_parameters())
    shared = {id(p) for p in components[0].denoiser.parameters()}
    assert sum(id(p) in shared for p in components[1].denoiser.parameters()) == len(frozen)
