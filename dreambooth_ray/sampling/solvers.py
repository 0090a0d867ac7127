"""Solvers as tables of coefficients: a step of any of them is one weighted sum.

Legend: x the state, x = alpha x0 + sigma eps; m what the network predicts (noise or
velocity); h the value a step stores of it, h = p x + q m. A step computes

    x' = a x + sum_k b[k] h[k] + noise_scale z,      h[0] the newest, z standard normal

All states are variance-preserving, so the network's input is x itself: Euler's states are
divided by sqrt(1 + sigma^2). Time points and sigmas come from diffusers' own schedulers.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.objective.noise_schedule import FlowSchedule, NoiseScheduleConfig
from dreambooth_ray.sampling.consistency_solvers import build_lcm, build_tcd
from dreambooth_ray.sampling.flow_solvers import FLOW_BUILDERS
from dreambooth_ray.sampling.solver_steps import (
    Pair,
    SolverStep,
    SolverTable,
    compute_alpha_and_sigma,
    eps_coefficients,
    x0_coefficients,
)


@functools.lru_cache(maxsize=512)
def build_solver_table(
    schedule: NoiseScheduleConfig | FlowSchedule,
    solver: str,
    num_steps: int,
    eta: float = 0.0,
    karras: bool = False,
    begin: int = 0,
) -> SolverTable:
    """The steps `begin`..num_steps-1 of a trajectory of `num_steps`.

    raises: ConfigError naming the field that can't be used
    """
    if isinstance(schedule, FlowSchedule):
        return FLOW_BUILDERS[solver](schedule, begin)
    if num_steps > schedule.settings.get("num_train_timesteps", 1000):
        raise ConfigError(f"num_inference_steps={num_steps} is more than the model was trained on")
    builders: dict[str, Callable[..., SolverTable]] = {
        "ddim": _ddim,
        "plms": _plms,
        "euler": _euler,
        "euler_a": _euler_ancestral,
        "dpmpp_2m": _dpmpp_2m,
        "lcm": build_lcm,
        "tcd": build_tcd,
    }
    return builders[solver](schedule, num_steps, eta, karras, begin)


def _ddim(
    schedule: NoiseScheduleConfig, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Song et al. 2020, arXiv 2010.02502, eq. 12."""
    scheduler = DDIMScheduler.from_config(schedule.settings)
    scheduler.set_timesteps(num_steps)
    timestep_stride = scheduler.config.num_train_timesteps // num_steps
    alpha_bars = scheduler.alphas_cumprod.double().numpy()
    prediction_type, solver_steps = schedule.prediction_type, []
    for t in scheduler.timesteps[begin:].tolist():
        alpha_bar, final_alpha_bar = alpha_bars[t], float(scheduler.final_alpha_cumprod)
        alpha_bar_to = alpha_bars[t - timestep_stride] if t >= timestep_stride else final_alpha_bar
        noise_level, next_noise_level = (
            compute_alpha_and_sigma(alpha_bar),
            compute_alpha_and_sigma(alpha_bar_to),
        )
        x0_weights, eps_weights = (
            x0_coefficients(prediction_type, *noise_level),
            eps_coefficients(prediction_type, *noise_level),
        )
        noise_scale = eta * float(
            np.sqrt((1 - alpha_bar_to) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_to))
        )
        # What points to x0's noise and what is fresh have the target's variance together.
        direction_scale = float(np.sqrt(1 - alpha_bar_to - noise_scale**2))
        a, b = (
            next_noise_level[0] * c + direction_scale * n
            for c, n in zip(x0_weights, eps_weights, strict=True)
        )
        solver_steps.append(
            SolverStep(
                float(t),
                noise_level,
                next_noise_level,
                (0.0, 1.0),
                x0_weights,
                a,
                (b,),
                noise_scale,
                keeps_history=False,
            )
        )
    return SolverTable(tuple(solver_steps), 1.0)


# Adams-Bashforth weights by the number of predictions there are, newest first.
_ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _plms(
    schedule: NoiseScheduleConfig, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Liu et al. 2022, arXiv 2202.09778, pseudo linear multistep, as Stable Diffusion 1 has it."""
    if schedule.settings.get("rescale_betas_zero_snr"):
        raise ConfigError("solver='plms' can't draw from a model with zero terminal SNR; use ddim")
    scheduler = PNDMScheduler.from_config(schedule.settings, skip_prk_steps=True)
    scheduler.set_timesteps(num_steps)
    alpha_bars = scheduler.alphas_cumprod.double().numpy()
    timestep_stride = scheduler.config.num_train_timesteps // num_steps
    # Without the repeated second point; it is added again for any first step.
    timesteps = list(dict.fromkeys(scheduler.timesteps.tolist()))[begin:]
    prediction_type, solver_steps = schedule.prediction_type, []
    for num_predictions, t in enumerate(timesteps, 1):
        alpha_bar = alpha_bars[t]
        alpha_bar_to = (
            alpha_bars[t - timestep_stride]
            if t >= timestep_stride
            else float(scheduler.final_alpha_cumprod)
        )
        noise_level, next_noise_level = (
            compute_alpha_and_sigma(alpha_bar),
            compute_alpha_and_sigma(alpha_bar_to),
        )
        x0_weights = x0_coefficients(prediction_type, *noise_level)
        a, b = _pndm_transfer_coefficients(prediction_type, alpha_bar, alpha_bar_to)
        history_weights = tuple(b * w for w in _ADAMS[min(num_predictions, 4) - 1])
        solver_steps.append(
            SolverStep(
                float(t), noise_level, next_noise_level, (0.0, 1.0), x0_weights, a, history_weights
            )
        )
        if num_predictions == 1 and len(timesteps) > 1:
            # Heun's correction: again from the state before the first step, which was
            # (x - b m) / a, by the mean of the predictions at both ends.
            correction_noise_level, correction_start_timestep = (
                compute_alpha_and_sigma(alpha_bars[timesteps[1]]),
                min(timesteps[1] + timestep_stride, len(alpha_bars) - 1),
            )
            correction_a, correction_b = _pndm_transfer_coefficients(
                prediction_type, alpha_bars[correction_start_timestep], alpha_bars[timesteps[1]]
            )
            correction_weights = (correction_b / 2, correction_b / 2 - correction_a / a * b)
            correction_step = SolverStep(
                float(timesteps[1]), correction_noise_level, correction_noise_level, (0.0, 1.0),
                x0_coefficients(prediction_type, *correction_noise_level), correction_a / a,
                correction_weights, keeps_history=False,
            )  # fmt: skip
            solver_steps.append(correction_step)
    return SolverTable(tuple(solver_steps), 1.0)


def _pndm_transfer_coefficients(
    prediction_type: str, alpha_bar: float, alpha_bar_to: float
) -> Pair:
    """Weights of x and m in formula (9) of the PNDM paper."""
    (p, q), a = (
        eps_coefficients(prediction_type, *compute_alpha_and_sigma(alpha_bar)),
        float(np.sqrt(alpha_bar_to / alpha_bar)),
    )
    denominator = alpha_bar * np.sqrt(1 - alpha_bar_to) + np.sqrt(
        alpha_bar * (1 - alpha_bar) * alpha_bar_to
    )
    eps_factor = -float((alpha_bar_to - alpha_bar) / denominator)
    return a + eps_factor * p, eps_factor * q


def _variance_preserving_levels(sigmas: list[float]) -> list[Pair]:
    return [(1 / float(np.hypot(1, s)), s / float(np.hypot(1, s))) for s in sigmas]


def _euler(
    schedule: NoiseScheduleConfig, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn."""
    scheduler = EulerDiscreteScheduler.from_config(
        schedule.settings, use_karras_sigmas=karras, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(num_steps)
    return _euler_table(schedule, scheduler, [(s, 0.0) for s in scheduler.sigmas.tolist()], begin)


def _euler_ancestral(
    schedule: NoiseScheduleConfig, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Euler towards less noise than the next point has, the rest as fresh noise (k-diffusion)."""
    scheduler = EulerAncestralDiscreteScheduler.from_config(schedule.settings)
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.double().tolist()
    down_up_sigmas = [(sigmas[0], 0.0)]
    for sigma, sigma_to in itertools.pairwise(sigmas):
        sigma_up = float(np.sqrt(sigma_to**2 * (sigma**2 - sigma_to**2) / sigma**2))
        down_up_sigmas.append((float(np.sqrt(max(sigma_to**2 - sigma_up**2, 0.0))), sigma_up))
    return _euler_table(schedule, scheduler, down_up_sigmas, begin)


def _euler_table(
    schedule: NoiseScheduleConfig, scheduler: Any, down_up_sigmas: list[Pair], begin: int
) -> SolverTable:
    """down_up_sigmas[i]: (sigma the step into point i goes down to, sigma of fresh noise there)."""
    sigmas = scheduler.sigmas.double().tolist()
    noise_levels, prediction_type, solver_steps = (
        _variance_preserving_levels(sigmas),
        schedule.prediction_type,
        [],
    )
    for i, t in enumerate(scheduler.timesteps.tolist()):
        sigma_down, sigma_up = down_up_sigmas[i + 1]
        variance_scale = 1 / float(np.hypot(1, sigmas[i + 1]))
        eps_weights = eps_coefficients(prediction_type, *noise_levels[i])
        # In sigma space x + (sigma_down - sigma) eps; both ends divided to unit variance.
        eps_factor = (sigma_down - sigmas[i]) * variance_scale
        a = float(np.hypot(1, sigmas[i])) * variance_scale
        solver_step = SolverStep(
            float(t), noise_levels[i], noise_levels[i + 1], (0.0, 1.0),
            x0_coefficients(prediction_type, *noise_levels[i]), a + eps_factor * eps_weights[0],
            (eps_factor * eps_weights[1],), sigma_up * variance_scale, keeps_history=False,
        )  # fmt: skip
        solver_steps.append(solver_step)
    initial_scale = float(scheduler.init_noise_sigma) / float(np.hypot(1, sigmas[0]))
    return SolverTable(tuple(solver_steps[begin:]), initial_scale)


def _dpmpp_2m(
    schedule: NoiseScheduleConfig, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Lu et al. 2022, arXiv 2211.01095, algorithm 2: multistep, second order, midpoint."""
    scheduler = DPMSolverMultistepScheduler.from_config(
        schedule.settings, solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint",
        final_sigmas_type="zero", lower_order_final=True, use_karras_sigmas=karras,
    )  # fmt: skip
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.double().tolist()
    noise_levels, prediction_type, solver_steps = (
        _variance_preserving_levels(sigmas),
        schedule.prediction_type,
        [],
    )
    for i in range(begin, num_steps):
        (alpha, sigma), (alpha_to, sigma_to) = noise_levels[i], noise_levels[i + 1]
        # Exact if x0 were constant over the step. Second order: x0 at the step's middle, by a line
        # through the last two; not at first (there is one), nor last (log-SNR ends in infinity).
        x0_factor = alpha * sigma_to / sigma - alpha_to
        history_weights: tuple[float, ...] = (-x0_factor,)
        if begin < i < num_steps - 1:
            # Log-SNR is -log of sigma in sigma space.
            log_snr_ratio = np.log(sigmas[i - 1] / sigmas[i]) / np.log(sigmas[i] / sigmas[i + 1])
            second_order_weight = 0.5 * x0_factor / float(log_snr_ratio)
            history_weights = (-x0_factor - second_order_weight, second_order_weight)
        x0_weights = x0_coefficients(prediction_type, alpha, sigma)
        solver_step = SolverStep(
            float(scheduler.timesteps[i]), noise_levels[i], noise_levels[i + 1], x0_weights,
            x0_weights, sigma_to / sigma, history_weights,
        )  # fmt: skip
        solver_steps.append(solver_step)
    return SolverTable(tuple(solver_steps), 1.0)
