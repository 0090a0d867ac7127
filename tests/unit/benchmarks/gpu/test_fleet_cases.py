"""What is timed on a GPU is what a run alone trains; here at tiny size on a CPU."""

import pytest
import torch

from benchmarks.gpu import fleet_cases
from benchmarks.gpu.train_cases import FP32, LORA, OurTraining, TrainingCase
from benchmarks.random_models import TINY

CPU = torch.device("cpu")
SETTINGS = (*LORA, *FP32, "train.text_encoder=false")


def test_a_fleet_takes_the_steps_of_its_subjects_alone() -> None:
    case = fleet_cases.FleetCase(2, SETTINGS)
    trainer = fleet_cases.make_slot_trainer(case, TINY, CPU, 9)
    losses = torch.stack([fleet_cases.take_step(trainer)[1] for _ in range(9)])
    # As many steps: five to warm up, one that is timed, three that are counted.
    alone = OurTraining(TrainingCase("alone", (*SETTINGS, "seed=1")), TINY, CPU, 1)
    alone.run()
    assert losses[:, :2].sum(dim=1).tolist() == pytest.approx(
        torch.stack(alone.timer.losses).tolist(), rel=1e-5
    )


@pytest.mark.fault
def test_a_record_has_speed_and_memory_beside_one_at_a_time() -> None:
    record = fleet_cases.measure_case(fleet_cases.FleetCase(2), TINY, CPU, 1)
    alone = record["one at a time"]
    assert record["subject_steps_s"] == pytest.approx(2 / record["step_s"], rel=1e-2)
    assert record["images_s"] == pytest.approx(2 * record["subject_steps_s"], rel=1e-2)
    assert record["ratio"] == pytest.approx(
        record["subject_steps_s"] / alone["subject_steps_s"], rel=1e-2
    )
    assert record["last_loss"] > 0
    assert record.keys() >= {"allocated_bytes", "waits_a_step", "utilisation"}
