"""Which photographs and which class images a step sees: a pure function of the step.

Nothing is consumed, so nothing needs saving: a resume at step s asks for step s, and any
number of workers share out the same global batch.
"""

import numpy as np


def shuffled_index(seed: int, purpose: int, position: int, size: int) -> int:
    """Item at `position` of an endless sequence of shuffles of range(size).

    Every item comes once in each run of `size` positions.
    """
    epoch, place = divmod(position, size)
    return int(np.random.default_rng([seed, purpose, epoch]).permutation(size)[place])


def in_order_first(seed: int, purpose: int, position: int, size: int) -> int:
    """As shuffled_index, but the first time round items come in order.

    So that a sequence can be begun while its later items are still being made.
    """
    return position if position < size else shuffled_index(seed, purpose, position, size)


def batch_positions(step: int, batch_size: int, rank: int, world: int) -> range:
    """Global positions in the sequence that worker `rank` of `world` takes at `step`.

    step counts from 0; batch_size is over all workers and divisible by world
    """
    share = batch_size // world
    start = step * batch_size + rank * share
    return range(start, start + share)
