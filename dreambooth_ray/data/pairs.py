"""Which photographs and which class images a step sees: a pure function of the step.

Nothing is consumed, so nothing needs saving: a resume at step s asks for step s, and any
number of workers share out the same global batch.
"""

import numpy as np

# Different class images a training begins with, before the first is seen again.
_HEAD = 16


def shuffled_index(seed: int, purpose: int, position: int, size: int) -> int:
    """Item at `position` of an endless sequence of shuffles of range(size).

    Every item comes once in each run of `size` positions.
    """
    epoch, place = divmod(position, size)
    return int(np.random.default_rng([seed, purpose, epoch]).permutation(size)[place])


def as_late_as_possible(seed: int, purpose: int, position: int, size: int, total: int) -> int:
    """Item at `position` of a sequence of `total`, in which every item comes, in order.

    Items of a set that is still being made are asked for one by one over the whole length,
    from a little variety on, with repeats of earlier ones between them: so a maker and a
    user of any two speeds take no longer together than the slower of them alone.
    """
    head = min(size, _HEAD)
    if position >= total:
        return shuffled_index(seed, purpose, position, size)
    if position < head or total <= size:
        return position
    seen, is_new = _introduced(position - head, size - head, total - head)
    if is_new:
        return head + seen
    return int(np.random.default_rng([seed, purpose, position]).integers(head + seen))


def _introduced(position: int, size: int, total: int) -> tuple[int, bool]:
    """How many of `size` items, spread evenly over `total`, came before, and if one comes now."""
    before, after = position * size // total, (position + 1) * size // total
    return before, after > before


def batch_positions(step: int, batch_size: int, rank: int, world: int) -> range:
    """Global positions in the sequence that worker `rank` of `world` takes at `step`.

    step counts from 0; batch_size is over all workers and divisible by world
    """
    share = batch_size // world
    start = step * batch_size + rank * share
    return range(start, start + share)
