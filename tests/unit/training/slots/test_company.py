"""Subjects that come and go, or fall sick, change nothing for the others."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth_ray.errors import ConfigError, DreamBoothError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.slots.slot_subject import SlotSubject
from tests.unit.training.fitted import Fitted
from tests.unit.training.slots.slotted import LORA, Curve, Slotted
from tests.unit.training.slots.test_slot_trainer import assert_close

# Ranks and numbers of steps differ.
KINDS = [
    (f"train.lora.rank={rank}", f"train.steps={steps}", f"seed={seed}", "train.lr=2e-3")
    for seed, (rank, steps) in enumerate([(1, 6), (4, 3), (2, 5), (3, 1), (4, 4)])
]
MAX_RANK = 4


# Of all subjects of a batch.
SHARED = {
    "plain": (),
    "both, validated": (
        "prior.kind=both", "prior.count=5", "validation.every=2", "validation.held_out=1",
        "validation.class_images=2", "validation.timesteps=2", "validation.bins=1",
        "train.ema_decay=0.8",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def curves_alone(tiny_model: Path, photos: Path, priors: Store) -> dict[str, list[Curve]]:
    """Of each of KINDS, by a trainer of its own, for each of SHARED."""
    return {
        name: [
            Fitted(tiny_model, photos, priors, *LORA, *shared, *overrides).watch.records
            for overrides in KINDS
        ]
        for name, shared in SHARED.items()
    }


# For each subject: its kind, how many steps pass before it comes, and after how many it is
# cancelled.
ARRIVALS = st.lists(
    st.tuples(st.integers(0, len(KINDS) - 1), st.integers(0, 3), st.none() | st.integers(1, 4)),
    min_size=1,
    max_size=9,
)


@pytest.mark.fault
@settings(
    max_examples=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    shared=st.sampled_from(sorted(SHARED)), num_slots=st.sampled_from([1, 2, 7]), arrivals=ARRIVALS
)
def test_joining_and_leaving_at_random_changes_no_curve(
    tiny_model: Path,
    photos: Path,
    priors: Store,
    curves_alone: dict[str, list[Curve]],
    shared: str,
    num_slots: int,
    arrivals: list[tuple[int, int, int | None]],
) -> None:
    slotted = Slotted(tiny_model, photos, priors, num_slots, *SHARED[shared], rank=MAX_RANK)
    waiting = list(enumerate(arrivals))
    ends: dict[SlotSubject, int] = {}
    clock = 0
    while waiting or slotted.trainer.subjects:
        while waiting and slotted.trainer.num_free_slots and waiting[0][1][1] <= clock:
            number, (kind, _, cancelled_after) = waiting.pop(0)
            subject = slotted.join(str(number), *KINDS[kind])
            ends[subject] = cancelled_after or subject.config.train.steps
        slotted.step()
        clock += 1
        for subject in slotted.trainer.subjects:
            if subject.step >= ends[subject]:
                slotted.trainer.leave(subject)
    for number, (kind, _, cancelled_after) in enumerate(arrivals):
        assert_close(slotted.curves[str(number)], curves_alone[shared][kind][:cancelled_after])


@pytest.mark.fault
def test_32_subjects_learn_as_alone(
    tiny_model: Path, photos: Path, priors: Store, curves_alone: dict[str, list[Curve]]
) -> None:
    slotted = Slotted(tiny_model, photos, priors, 32, rank=MAX_RANK)
    for number in range(32):
        slotted.join(str(number), *KINDS[number % len(KINDS)])
    for number, curve in ((int(name), curve) for name, curve in slotted.run().items()):
        assert_close(curve, curves_alone["plain"][number % len(KINDS)])


def poison_photographs(subject: SlotSubject) -> None:
    for image in subject.dataset._photographs[0].images:
        image[0].latents.fill_(float("nan"))


def lose_class_images(subject: SlotSubject) -> None:
    def fail(step: int) -> None:
        raise DreamBoothError("no more class images come")

    subject.dataset.make_batch = fail  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize("happens", [poison_photographs, lose_class_images])
def test_the_others_of_a_sick_subject_learn_bit_for_bit_what_they_learn_without_it(
    tiny_model: Path, photos: Path, priors: Store, happens: Callable[[SlotSubject], None]
) -> None:
    curves, weights = [], []
    for is_there in (True, False):
        slotted = Slotted(tiny_model, photos, priors, 4, rank=MAX_RANK)
        for number in range(3):
            if number == 1 and not is_there:
                # Those behind are in other slots then.
                continue
            subject = slotted.join(str(number), "train.steps=9", f"seed={number}")
            if number == 1:
                happens(subject)
        for _ in range(2):
            slotted.step()
        names = {n: s for s, n in slotted.names.items() if n != "1"}
        weights.append({n: s.view_weights() for n, s in names.items() if not s.is_done})
        curves.append({n: slotted.curves[n] for n in names})
    assert curves[0] == curves[1]
    assert weights[0].keys() == weights[1].keys() == {"0", "2"}
    for number, own in weights[0].items():
        assert all(torch.equal(own[name], w) for name, w in weights[1][number].items())


def test_a_gradient_that_is_no_number_changes_no_weight(
    tiny_model: Path, photos: Path, priors: Store
) -> None:
    slotted = Slotted(tiny_model, photos, priors, 2)
    subject = slotted.join("sick")
    slotted.step()
    poison_photographs(subject)
    before = {name: weight.clone() for name, weight in subject.view_weights().items()}
    slotted.step()
    assert not slotted.curves["sick"][-1]["loss"] < float("inf")
    assert all(torch.equal(before[n], w) for n, w in subject.view_weights().items())
    assert subject.view_training_state().update_count == 1
    assert subject.step == 2


def test_a_missing_batch_is_that_subjects_alone(
    tiny_model: Path, photos: Path, priors: Store
) -> None:
    slotted = Slotted(tiny_model, photos, priors, 2)
    healthy, sick = slotted.join("healthy"), slotted.join("sick", "seed=1")
    lose_class_images(sick)
    step = slotted.trainer.step()
    assert list(step.values) == [healthy]
    assert list(step.failures) == [sick]
    slotted.trainer.leave(sick)
    assert slotted.trainer.num_free_slots == 1


def test_what_does_not_fit_is_refused(tiny_model: Path, photos: Path, priors: Store) -> None:
    slotted = Slotted(tiny_model, photos, priors, 2)
    slotted.join("first")
    with pytest.raises(ConfigError, match=r"train\.lora\.rank=9 is above 2"):
        slotted.join("wide", "train.lora.rank=9")
    with pytest.raises(ConfigError, match="number of windows"):
        slotted.join("long", f"train.prompt={'a very long caption ' * 8}")
    assert len(slotted.trainer.subjects) == 1
