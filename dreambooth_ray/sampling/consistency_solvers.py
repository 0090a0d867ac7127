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
from dreambooth_ray.objective.noise_schedule import NoiseScheduleConfig
from dreambooth_ray.sampling.solver_steps import (
    SolverStep,
    SolverTable,
    compute_alpha_and_sigma,
    eps_coefficients,
    x0_coefficients,
)


def build_lcm(
    schedule: NoiseScheduleConfig, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Luo et al. 2023, arXiv 2310.04378, algorithm 3: fresh noise but for the last step."""
    scheduler = LCMScheduler.from_config(schedule.settings)
    times, alpha_bars = _find_times(scheduler, "lcm", num_steps)
    prediction_type, solver_steps = schedule.prediction_type, []
    for index, t in enumerate(times):
        is_last_step = index == num_steps - 1
        noise_level = compute_alpha_and_sigma(alpha_bars[t])
        next_noise_level = (
            (1.0, 0.0) if is_last_step else compute_alpha_and_sigma(alpha_bars[times[index + 1]])
        )
        x0_weights = x0_coefficients(prediction_type, *noise_level)
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t)
        a, b = (
            next_noise_level[0] * (c_skip + c_out * x0_weights[0]),
            next_noise_level[0] * c_out * x0_weights[1],
        )
        solver_step = SolverStep(
            float(t),
            noise_level,
            next_noise_level,
            (0.0, 1.0),
            x0_weights,
            a,
            (b,),
            next_noise_level[1],
            keeps_history=False,
        )
        solver_steps.append(solver_step)
    return SolverTable(tuple(solver_steps[begin:]), 1.0)


def build_tcd(
    schedule: NoiseScheduleConfig, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Zheng et al. 2024, arXiv 2402.19159, algorithm 4; eta is its gamma.

    A step goes down to less noise than the next time point has, (1 - gamma) of its time, and the
    rest is fresh.
    """
    scheduler = TCDScheduler.from_config(schedule.settings)
    times, alpha_bars = _find_times(scheduler, "tcd", num_steps)
    prediction_type, solver_steps = schedule.prediction_type, []
    for index, t in enumerate(times):
        is_last_step = index == num_steps - 1
        time_to = 0 if is_last_step else times[index + 1]
        # In float32, as diffusers rounds it.
        time_down = int(np.floor(np.float32(1 - eta) * np.float32(time_to)))
        alpha_bar_to, alpha_bar_down = alpha_bars[time_to], alpha_bars[time_down]
        noise_level, next_noise_level, down_noise_level = map(
            compute_alpha_and_sigma, (alpha_bars[t], alpha_bar_to, alpha_bar_down)
        )
        x0_weights, eps_weights = (
            x0_coefficients(prediction_type, *noise_level),
            eps_coefficients(prediction_type, *noise_level),
        )
        alpha_bar_ratio = alpha_bar_to / alpha_bar_down
        a, b = (
            math.sqrt(alpha_bar_ratio) * (down_noise_level[0] * c + down_noise_level[1] * n)
            for c, n in zip(x0_weights, eps_weights, strict=True)
        )
        solver_step = SolverStep(
            float(t), noise_level, next_noise_level, (0.0, 1.0), x0_weights, a, (b,),
            math.sqrt(1 - alpha_bar_ratio), keeps_history=False,
        )  # fmt: skip
        solver_steps.append(solver_step)
    return SolverTable(tuple(solver_steps[begin:]), 1.0)


def _find_times(scheduler: Any, solver: str, num_steps: int) -> tuple[list[int], list[float]]:
    """Time points, the most noise first, and alpha bar of every time.

    raises: ConfigError for more steps than the models were distilled at
    """
    max_sampling_steps = int(scheduler.config.original_inference_steps)
    if num_steps > max_sampling_steps:
        raise ConfigError(
            f"num_inference_steps={num_steps} is more than {max_sampling_steps}, the time points "
            f"that models for solver={solver} are distilled at; 4 to 8 are enough"
        )
    scheduler.set_timesteps(num_steps)
    return scheduler.timesteps.tolist(), scheduler.alphas_cumprod.double().tolist()
