"""Which photographs and which class images a step sees: a pure function of the step.

Nothing is consumed, so nothing needs saving: a resume at step s asks for step s, and any
number of workers share out the same global batch.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np

# Different class images a training begins with, before the first is seen again.
_HEAD = 16

# Repeats are sampled with density k**(_LEAN - 1) over the k-th item. Even ones (1) let the first
# class images crowd out the rest; much more than 3 shows the same few in a row.
_LEAN = 3


def shuffled_index(seed: int, purpose: int, position: int, size: int) -> int:
    """Item at `position` of an endless sequence of shuffles of range(size).

    Every item comes once in each run of `size` positions.
    """
    epoch, epoch_position = divmod(position, size)
    return int(_shuffle_indices(seed, purpose, epoch, size)[epoch_position])


@lru_cache(maxsize=256)
def _shuffle_indices(seed: int, purpose: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, purpose, epoch]).permutation(size)


def growing_set_index(seed: int, purpose: int, position: int, size: int, total: int) -> int:
    """Item at `position` of a sequence of `total`, in which every item comes, in order.

    New items of a set that is still being generated come one by one, spread over the whole
    length, with repeats of earlier items between them: so the process that generates and the
    one that trains take no longer together than the slower of them alone. Repeats
    lean to the newer ones, which have less time left to be seen: an item that comes at share
    x of the length is seen 1.5 * (1 - x**2) times as often as the mean, where even repeats
    would have the first of a hundred seen five times as often and half of them hardly at all.
    """
    initial_set_size = min(size, _HEAD)
    if position >= total:
        return shuffled_index(seed, purpose, position, size)
    if position < initial_set_size or total <= size:
        return position
    num_introduced_items, is_new_item = _count_introduced_items(
        position - initial_set_size, size - initial_set_size, total - initial_set_size
    )
    if is_new_item:
        return initial_set_size + num_introduced_items
    random_fraction, initial_random_fraction = np.random.default_rng(
        [seed, purpose, position]
    ).random(2)
    # A root of a uniform number is above it: newer items come more often than older ones.
    repeated_item_index = int(
        (initial_set_size + num_introduced_items) * random_fraction ** (1 / _LEAN)
    )
    # Those of the head came all at once: none of them is newer than another.
    return (
        repeated_item_index
        if repeated_item_index >= initial_set_size
        else int(initial_set_size * initial_random_fraction)
    )


def _count_introduced_items(position: int, size: int, total: int) -> tuple[int, bool]:
    """How many of `size` items, spread evenly over `total`, came before, and if a new one comes."""
    num_items_before, num_items_after = position * size // total, (position + 1) * size // total
    return num_items_before, num_items_after > num_items_before


def group_rows_by_shape(
    shapes: Sequence[Any], rank: int, world_size: int, num_parts: int = 1, part: int = 0
) -> list[list[int]]:
    """The rows of a step's batch that a worker takes for a part of its share, a group a forward.

    Rows of one shape come together, and each worker has as many rows and as many forwards as the
    others, so that sharded ones move in step. Of one shape they are a single run in order.

    shapes: of the rows of the whole batch, which can be compared; as many as workers times parts,
        or a multiple of it
    """
    sorted_row_indices = sorted(range(len(shapes)), key=lambda row: (shapes[row], row))
    rows_per_worker = len(sorted_row_indices) // world_size
    rows_per_microbatch = rows_per_worker // num_parts
    row_starts = [
        worker * rows_per_worker + part * rows_per_microbatch for worker in range(world_size)
    ]
    groups_by_worker = [
        _split_rows_by_shape(shapes, sorted_row_indices[start : start + rows_per_microbatch])
        for start in row_starts
    ]
    shape_groups, num_forwards = groups_by_worker[rank], max(map(len, groups_by_worker))
    while len(shape_groups) < num_forwards:
        largest_group_index = max(range(len(shape_groups)), key=lambda i: len(shape_groups[i]))
        split_point = len(shape_groups[largest_group_index]) // 2
        shape_groups[largest_group_index : largest_group_index + 1] = [
            shape_groups[largest_group_index][:split_point],
            shape_groups[largest_group_index][split_point:],
        ]
    return shape_groups


def _split_rows_by_shape(shapes: Sequence[Any], rows: list[int]) -> list[list[int]]:
    return [list(group) for _, group in groupby(rows, key=lambda row: shapes[row])]


class ShapeOccurrenceCounter:
    """How often the shape of each position has come before: a pure function of the position."""

    def __init__(self, find_shape: Callable[[int], Hashable], total: int) -> None:
        """total: positions of the whole sequence"""
        self._shapes = [find_shape(position) for position in range(total)]
        self.totals = Counter(self._shapes)
        shape_counts: Counter[Hashable] = Counter()
        self._turns = list[int]()
        for shape in self._shapes:
            self._turns.append(shape_counts[shape])
            shape_counts[shape] += 1

    def count_earlier_same_shape(self, position: int) -> int:
        """Positions before this one that have its shape."""
        return self._turns[position]
