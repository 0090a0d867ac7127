"""Which subjects of a fleet share a batch, and in how many slots. Pure."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from dreambooth_ray.config.schema import Config
from dreambooth_ray.training.slots.shared_batch_rules import (
    find_shared_batch_obstacle,
    make_shared_batch_key,
)


@dataclass(frozen=True)
class SharedBatchGroup:
    """Subjects that can share a batch, by id in the fleet's order; rank: the largest of them."""

    subject_ids: tuple[str, ...]
    rank: int


@dataclass(frozen=True)
class SharedBatchPlan:
    """obstacles: of subjects that are trained by themselves: the setting that keeps them apart."""

    groups: tuple[SharedBatchGroup, ...]
    obstacles: Mapping[str, str]


def group_subjects_for_shared_batches(configs: Mapping[str, Config]) -> SharedBatchPlan:
    """configs: by subject's id, with the model's defaults filled in"""
    ids_by_group: dict[Hashable, list[str]] = {}
    obstacles: dict[str, str] = {}
    for subject_id, config in configs.items():
        if (obstacle := find_shared_batch_obstacle(config)) is not None:
            obstacles[subject_id] = obstacle
        else:
            ids_by_group.setdefault(make_shared_batch_key(config), []).append(subject_id)
    groups = [
        SharedBatchGroup(tuple(ids), max(configs[subject_id].train.lora.rank for subject_id in ids))
        for ids in ids_by_group.values()
    ]
    return SharedBatchPlan(tuple(groups), obstacles)


def divide_slots_among_workers(num_slots: int, num_workers: int, num_subjects: int) -> list[int]:
    """Slots of each worker: equal shares, and not many more than there are subjects.

    A batch computes all its slots, taken or not. Powers of two, where the subjects are fewer than
    the slots: so one subject more or less leaves the others' numbers as they are, bit for bit.
    """
    num_workers = max(1, min(num_workers, num_slots, num_subjects))
    slots_per_worker = [
        num_slots // num_workers + (worker < num_slots % num_workers)
        for worker in range(num_workers)
    ]
    max_subjects_per_worker = -(-num_subjects // num_workers)
    needed_slots = 1 << (max_subjects_per_worker - 1).bit_length()
    return [min(share, needed_slots) for share in slots_per_worker]
