"""Which photographs and which class images a step sees: a pure function of the step.

Nothing is consumed, so nothing needs saving: a resume at step s asks for step s, and any
number of workers share out the same global batch.
"""

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
    epoch, offset = divmod(position, size)
    return int(np.random.default_rng([seed, purpose, epoch]).permutation(size)[offset])


def growing_set_index(seed: int, purpose: int, position: int, size: int, total: int) -> int:
    """Item at `position` of a sequence of `total`, in which every item comes, in order.

    New items of a set that is still being generated come one by one, spread over the whole
    length, with repeats of earlier items between them: so the process that generates and the
    one that trains take no longer together than the slower of them alone. Repeats
    lean to the newer ones, which have less time left to be seen: an item that comes at share
    x of the length is seen 1.5 * (1 - x**2) times as often as the mean, where even repeats
    would have the first of a hundred seen five times as often and half of them hardly at all.
    """
    head = min(size, _HEAD)
    if position >= total:
        return shuffled_index(seed, purpose, position, size)
    if position < head or total <= size:
        return position
    num_introduced, is_new = _count_introduced(position - head, size - head, total - head)
    if is_new:
        return head + num_introduced
    uniform, head_uniform = np.random.default_rng([seed, purpose, position]).random(2)
    # A root of a uniform number is above it: newer items come more often than older ones.
    repeat_index = int((head + num_introduced) * uniform ** (1 / _LEAN))
    # Those of the head came all at once: none of them is newer than another.
    return repeat_index if repeat_index >= head else int(head * head_uniform)


def _count_introduced(position: int, size: int, total: int) -> tuple[int, bool]:
    """How many of `size` items, spread evenly over `total`, came before, and if a new one comes."""
    before, after = position * size // total, (position + 1) * size // total
    return before, after > before


def batch_positions(step: int, batch_size: int, rank: int, world: int) -> range:
    """Global positions in the sequence that worker `rank` of `world` takes at `step`.

    step counts from 0; batch_size is over all workers and divisible by world
    """
    share = batch_size // world
    start = step * batch_size + rank * share
    return range(start, start + share)
