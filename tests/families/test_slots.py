"""Several subjects in one batch, of each family, learn as each does alone."""

from pathlib import Path

import pytest

from tests.unit.training.fitted import Fitted
from tests.unit.training.slots.slotted import LORA, Slotted
from tests.unit.training.slots.test_slot_trainer import assert_close

pytestmark = pytest.mark.fault
SETTINGS = ("prior.count=0", "train.steps=2")
SUBJECTS = {
    "first": ("train.lora.rank=3", "subject.identifier=sks"),
    "second": ("seed=5", "train.lr=3e-3", "loss.caption_dropout=0.5"),
}


def test_curves_in_company_are_those_alone(tiny_directory: Path, photos: Path) -> None:
    slotted = Slotted(tiny_directory, photos, None, 3, *SETTINGS, rank=3)
    for name, overrides in SUBJECTS.items():
        slotted.join(name, *overrides)
    curves = slotted.run()
    for name, overrides in SUBJECTS.items():
        alone = Fitted(tiny_directory, photos, None, *LORA, *SETTINGS, *overrides)
        assert_close(curves[name], alone.watch.records)
