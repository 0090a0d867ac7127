"""Solvers of distilled models as tables; see `solvers` for what a table is.

What a distilled network predicts leads to the clean image from any noise level, in a few steps:
each goes there and back to the next level. Models and adapters that were not distilled for that
give mush. Time points are those that the models were distilled at.
"""

import math
from typing import Any

import numpy as np
from diffusers import LCMScheduler, TCDScheduler

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.objective.noise_schedule import NoiseSchedule
from dreambooth_ray.sampling.solver_steps import (
    SolverStep,
    SolverTable,
    clean_weights,
    find_level,
    noise_weights,
)


def build_lcm(
    schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Luo et al. 2023, arXiv 2310.04378, algorithm 3: fresh noise but for the last step."""
    scheduler = LCMScheduler.from_config(schedule.settings)
    times, alpha_bars = _find_times(scheduler, "lcm", num_steps)
    kind, steps = schedule.prediction_type, []
    for index, t in enumerate(times):
        is_last = index == num_steps - 1
        level = find_level(alpha_bars[t])
        target = (1.0, 0.0) if is_last else find_level(alpha_bars[times[index + 1]])
        clean = clean_weights(kind, *level)
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(t)
        a, b = target[0] * (skip + out * clean[0]), target[0] * out * clean[1]
        step = SolverStep(
            float(t), level, target, (0.0, 1.0), clean, a, (b,), target[1], keeps_history=False
        )
        steps.append(step)
    return SolverTable(tuple(steps[begin:]), 1.0)


def build_tcd(
    schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Zheng et al. 2024, arXiv 2402.19159, algorithm 4; eta is its gamma.

    A step goes down to less noise than the next time point has, (1 - gamma) of its time, and the
    rest is fresh.
    """
    scheduler = TCDScheduler.from_config(schedule.settings)
    times, alpha_bars = _find_times(scheduler, "tcd", num_steps)
    kind, steps = schedule.prediction_type, []
    for index, t in enumerate(times):
        is_last = index == num_steps - 1
        time_to = 0 if is_last else times[index + 1]
        # In float32, as diffusers rounds it.
        time_down = int(np.floor(np.float32(1 - eta) * np.float32(time_to)))
        alpha_bar_to, alpha_bar_down = alpha_bars[time_to], alpha_bars[time_down]
        level, target, down = map(find_level, (alpha_bars[t], alpha_bar_to, alpha_bar_down))
        clean, noise = clean_weights(kind, *level), noise_weights(kind, *level)
        share = alpha_bar_to / alpha_bar_down
        a, b = (
            math.sqrt(share) * (down[0] * c + down[1] * n)
            for c, n in zip(clean, noise, strict=True)
        )
        step = SolverStep(
            float(t), level, target, (0.0, 1.0), clean, a, (b,), math.sqrt(1 - share),
            keeps_history=False,
        )  # fmt: skip
        steps.append(step)
    return SolverTable(tuple(steps[begin:]), 1.0)


def _find_times(scheduler: Any, solver: str, num_steps: int) -> tuple[list[int], list[float]]:
    """Time points, the most noise first, and alpha bar of every time.

    raises: ConfigError for more steps than the models were distilled at
    """
    limit = int(scheduler.config.original_inference_steps)
    if num_steps > limit:
        raise ConfigError(
            f"num_inference_steps={num_steps} is more than {limit}, the time points that models "
            f"for solver={solver} are distilled at; 4 to 8 are enough"
        )
    scheduler.set_timesteps(num_steps)
    return scheduler.timesteps.tolist(), scheduler.alphas_cumprod.double().tolist()
