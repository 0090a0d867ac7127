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


def batch_positions(step: int, batch_size: int, rank: int, world: int) -> range:
    """Global positions in the sequence that worker `rank` of `world` takes at `step`.

    step counts from 0; batch_size is over all workers and divisible by world
    """
    share = batch_size // world
    start = step * batch_size + rank * share
    return range(start, start + share)
