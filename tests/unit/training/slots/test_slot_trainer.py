"""Curves of subjects that share a batch, against those of runs alone."""

from pathlib import Path

import pytest

from dreambooth_ray.storage.store import Store
from tests.unit.training.fitted import Fitted
from tests.unit.training.slots.slotted import LORA, Curve, Slotted


def assert_close(curve: Curve, expected: Curve) -> None:
    """Each value of each step within 1e-5 of what it is alone."""
    assert [record["step"] for record in curve] == [record["step"] for record in expected]
    for record, other in zip(curve, expected, strict=True):
        assert record.keys() == other.keys()
        assert record == pytest.approx(other, rel=1e-5, abs=1e-5)


VARIANTS = {
    "plain": (),
    "rank": (
        "train.lora.rank=5", "train.lora.alpha=3", "train.lr=2e-3", "train.lr_schedule=cosine",
        "train.lr_warmup_steps=2",
    ),
    "weights": (
        "prior.weight=0.3", "loss.min_snr_gamma=5", "train.weight_decay=0.5",
        "train.max_grad_norm=0.01", "seed=9",
    ),
    "average": (
        "loss.huber_delta=0.5", "loss.noise_offset=0.1", "train.steps=3", "train.ema_decay=0.9",
        "seed=3", "train.flip=true",
    ),
}  # fmt: skip

CONVOLUTIONS = 'train.lora.target_modules=["to_q","conv1","conv2"]'


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("train.lora.dora=false", tuple(VARIANTS)),
        ("train.lora.dora=true", ("rank",)),
        (CONVOLUTIONS, ("weights",)),
        ("prior.count=0", ("average",)),
        ("prior.kind=both", ("plain", "rank", "weights", "average")),
        ("prior.kind=output", ("plain", "rank", "weights", "average")),
    ],
    ids=["lora", "dora", "convolutions", "photographs alone", "both", "output"],
)
def test_a_curve_in_company_is_that_alone(
    tiny_model: Path, photos: Path, priors: Store, kind: str, names: tuple[str, ...]
) -> None:
    shared = ("train.steps=4", kind)
    slotted = Slotted(tiny_model, photos, priors, len(names) + 1, *shared, rank=5)
    for name in names:
        slotted.join(name, *VARIANTS[name])
    curves = slotted.run()
    for name in names:
        overrides = VARIANTS[name]
        alone = Fitted(tiny_model, photos, priors, *LORA, *shared, *overrides)
        assert_close(curves[name], alone.watch.records)


@pytest.mark.parametrize("kind", ["prior.kind=both", "prior.kind=output"])
def test_what_is_kept_goes_with_all_others_where_graphs_need_it(
    tiny_model: Path, photos: Path, priors: Store, kind: str
) -> None:
    curves = []
    for in_one_forward in (False, True):
        slotted = Slotted(tiny_model, photos, priors, 3, "train.steps=4", kind)
        slotted.trainer._in_one_forward = in_one_forward
        slotted.join("first", "prior.output_weight=2")
        slotted.join("second", "seed=5", "loss.min_snr_gamma=5")
        curves.append(slotted.run())
    for name, curve in curves[1].items():
        assert_close(curve, curves[0][name])
