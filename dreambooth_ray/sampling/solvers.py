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
from dreambooth_ray.objective.noise_schedule import FlowSchedule, NoiseSchedule
from dreambooth_ray.sampling.consistency_solvers import build_lcm, build_tcd
from dreambooth_ray.sampling.flow_solvers import FLOW_BUILDERS
from dreambooth_ray.sampling.solver_steps import (
    Pair,
    SolverStep,
    SolverTable,
    clean_weights,
    find_level,
    noise_weights,
)


@functools.lru_cache(maxsize=512)
def build_table(
    schedule: NoiseSchedule | FlowSchedule,
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
    schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Song et al. 2020, arXiv 2010.02502, eq. 12."""
    scheduler = DDIMScheduler.from_config(schedule.settings)
    scheduler.set_timesteps(num_steps)
    stride = scheduler.config.num_train_timesteps // num_steps
    alpha_bars = scheduler.alphas_cumprod.double().numpy()
    kind, steps = schedule.prediction_type, []
    for t in scheduler.timesteps[begin:].tolist():
        alpha_bar, final_alpha_bar = alpha_bars[t], float(scheduler.final_alpha_cumprod)
        alpha_bar_to = alpha_bars[t - stride] if t >= stride else final_alpha_bar
        level, target = find_level(alpha_bar), find_level(alpha_bar_to)
        clean, noise = clean_weights(kind, *level), noise_weights(kind, *level)
        spread = eta * float(
            np.sqrt((1 - alpha_bar_to) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_to))
        )
        # What points to x0's noise and what is fresh have the target's variance together.
        towards = float(np.sqrt(1 - alpha_bar_to - spread**2))
        a, b = (target[0] * c + towards * n for c, n in zip(clean, noise, strict=True))
        steps.append(
            SolverStep(
                float(t), level, target, (0.0, 1.0), clean, a, (b,), spread, keeps_history=False
            )
        )
    return SolverTable(tuple(steps), 1.0)


# Adams-Bashforth weights by the number of predictions there are, newest first.
_ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _plms(
    schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Liu et al. 2022, arXiv 2202.09778, pseudo linear multistep, as Stable Diffusion 1 has it."""
    if schedule.settings.get("rescale_betas_zero_snr"):
        raise ConfigError("solver='plms' can't draw from a model with zero terminal SNR; use ddim")
    scheduler = PNDMScheduler.from_config(schedule.settings, skip_prk_steps=True)
    scheduler.set_timesteps(num_steps)
    alpha_bars = scheduler.alphas_cumprod.double().numpy()
    stride = scheduler.config.num_train_timesteps // num_steps
    # Without the repeated second point; it is added again for any first step.
    points = list(dict.fromkeys(scheduler.timesteps.tolist()))[begin:]
    kind, steps = schedule.prediction_type, []
    for num_predictions, t in enumerate(points, 1):
        alpha_bar = alpha_bars[t]
        alpha_bar_to = (
            alpha_bars[t - stride] if t >= stride else float(scheduler.final_alpha_cumprod)
        )
        level, target = find_level(alpha_bar), find_level(alpha_bar_to)
        clean = clean_weights(kind, *level)
        a, b = _transfer_weights(kind, alpha_bar, alpha_bar_to)
        weights = tuple(b * w for w in _ADAMS[min(num_predictions, 4) - 1])
        steps.append(SolverStep(float(t), level, target, (0.0, 1.0), clean, a, weights))
        if num_predictions == 1 and len(points) > 1:
            # Heun's correction: again from the state before the first step, which was
            # (x - b m) / a, by the mean of the predictions at both ends.
            end, start = (
                find_level(alpha_bars[points[1]]),
                min(points[1] + stride, len(alpha_bars) - 1),
            )
            a_again, b_again = _transfer_weights(kind, alpha_bars[start], alpha_bars[points[1]])
            corrected = (b_again / 2, b_again / 2 - a_again / a * b)
            correction = SolverStep(
                float(points[1]), end, end, (0.0, 1.0), clean_weights(kind, *end), a_again / a,
                corrected, keeps_history=False,
            )  # fmt: skip
            steps.append(correction)
    return SolverTable(tuple(steps), 1.0)


def _transfer_weights(kind: str, alpha_bar: float, alpha_bar_to: float) -> Pair:
    """Weights of x and m in formula (9) of the PNDM paper."""
    (p, q), a = (
        noise_weights(kind, *find_level(alpha_bar)),
        float(np.sqrt(alpha_bar_to / alpha_bar)),
    )
    below = alpha_bar * np.sqrt(1 - alpha_bar_to) + np.sqrt(
        alpha_bar * (1 - alpha_bar) * alpha_bar_to
    )
    e = -float((alpha_bar_to - alpha_bar) / below)
    return a + e * p, e * q


def _levels(sigmas: list[float]) -> list[Pair]:
    return [(1 / float(np.hypot(1, s)), s / float(np.hypot(1, s))) for s in sigmas]


def _euler(
    schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn."""
    scheduler = EulerDiscreteScheduler.from_config(
        schedule.settings, use_karras_sigmas=karras, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(num_steps)
    return _euler_table(schedule, scheduler, [(s, 0.0) for s in scheduler.sigmas.tolist()], begin)


def _euler_ancestral(
    schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Euler towards less noise than the next point has, the rest as fresh noise (k-diffusion)."""
    scheduler = EulerAncestralDiscreteScheduler.from_config(schedule.settings)
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.double().tolist()
    aims = [(sigmas[0], 0.0)]
    for s, to in itertools.pairwise(sigmas):
        up = float(np.sqrt(to**2 * (s**2 - to**2) / s**2))
        aims.append((float(np.sqrt(max(to**2 - up**2, 0.0))), up))
    return _euler_table(schedule, scheduler, aims, begin)


def _euler_table(
    schedule: NoiseSchedule, scheduler: Any, aims: list[Pair], begin: int
) -> SolverTable:
    """aims[i]: (sigma the step into point i goes down to, sigma of fresh noise there)."""
    sigmas = scheduler.sigmas.double().tolist()
    levels, kind, steps = _levels(sigmas), schedule.prediction_type, []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        down, up = aims[i + 1]
        scale = 1 / float(np.hypot(1, sigmas[i + 1]))
        noise = noise_weights(kind, *levels[i])
        # In sigma space x + (down - sigma) eps; both ends divided to unit variance.
        e = (down - sigmas[i]) * scale
        a = float(np.hypot(1, sigmas[i])) * scale
        step = SolverStep(
            float(t), levels[i], levels[i + 1], (0.0, 1.0), clean_weights(kind, *levels[i]),
            a + e * noise[0], (e * noise[1],), up * scale, keeps_history=False,
        )  # fmt: skip
        steps.append(step)
    first = float(scheduler.init_noise_sigma) / float(np.hypot(1, sigmas[0]))
    return SolverTable(tuple(steps[begin:]), first)


def _dpmpp_2m(
    schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int
) -> SolverTable:
    """Lu et al. 2022, arXiv 2211.01095, algorithm 2: multistep, second order, midpoint."""
    scheduler = DPMSolverMultistepScheduler.from_config(
        schedule.settings, solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint",
        final_sigmas_type="zero", lower_order_final=True, use_karras_sigmas=karras,
    )  # fmt: skip
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas.double().tolist()
    levels, kind, steps = _levels(sigmas), schedule.prediction_type, []
    for i in range(begin, num_steps):
        (alpha, sigma), (alpha_to, sigma_to) = levels[i], levels[i + 1]
        # Exact if x0 were constant over the step. Second order: x0 at the step's middle, by a line
        # through the last two; not at first (there is one), nor last (log-SNR ends in infinity).
        k = alpha * sigma_to / sigma - alpha_to
        weights: tuple[float, ...] = (-k,)
        if begin < i < num_steps - 1:
            # Log-SNR is -log of sigma in sigma space.
            ratio = np.log(sigmas[i - 1] / sigmas[i]) / np.log(sigmas[i] / sigmas[i + 1])
            second = 0.5 * k / float(ratio)
            weights = (-k - second, second)
        clean = clean_weights(kind, alpha, sigma)
        step = SolverStep(
            float(scheduler.timesteps[i]), levels[i], levels[i + 1], clean, clean,
            sigma_to / sigma, weights,
        )  # fmt: skip
        steps.append(step)
    return SolverTable(tuple(steps), 1.0)
