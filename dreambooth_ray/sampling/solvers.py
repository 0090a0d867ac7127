"""Solvers as tables of coefficients: a step of any of them is one weighted sum.

Legend: x the state, x = alpha x0 + sigma eps; m what the network predicts (noise or
velocity); h what a step remembers of it, h = p x + q m. A step goes

    x' = a x + sum_k b[k] h[k] + noise_scale z,      h[0] the newest, z standard normal

All states are variance-preserving, so the network's input is x itself: Euler's states are
divided by sqrt(1 + sigma^2). Time points and sigmas come from diffusers' own schedulers.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.objective.noise_schedule import NoiseSchedule

SOLVERS = ("ddim", "plms", "euler", "euler_a", "dpmpp_2m")
KARRAS_SOLVERS = ("euler", "dpmpp_2m")
Pair = tuple[float, float]


@dataclass(frozen=True)
class Step:
    """One row of a table.

    level, next_level: (alpha, sigma) of the state before and after
    remember:          (p, q) of h = p x + q m
    clean:             (p, q) of the predicted x0 = p x + q m
    keeps:             whether h stays for later steps
    """

    timestep: float
    level: Pair
    next_level: Pair
    remember: Pair
    clean: Pair
    a: float
    b: tuple[float, ...]
    noise_scale: float = 0.0
    keeps: bool = True


@dataclass(frozen=True)
class Table:
    """All steps of one trajectory. initial_scale: of the standard normal it starts from."""

    steps: tuple[Step, ...]
    initial_scale: float


@functools.lru_cache(maxsize=512)
def table(
    schedule: NoiseSchedule,
    solver: str,
    num_steps: int,
    eta: float = 0.0,
    karras: bool = False,
    begin: int = 0,
) -> Table:
    """The steps `begin`..num_steps-1 of a trajectory of `num_steps`.

    raises: ConfigError naming the field that can't be
    """
    if num_steps > schedule.settings.get("num_train_timesteps", 1000):
        raise ConfigError(f"num_inference_steps={num_steps} is more than the model was trained on")
    makers: dict[str, Callable[..., Table]] = {
        "ddim": _ddim,
        "plms": _plms,
        "euler": _euler,
        "euler_a": _euler_ancestral,
        "dpmpp_2m": _dpmpp_2m,
    }
    return makers[solver](schedule, num_steps, eta, karras, begin)


def advance(
    step: Step,
    x: torch.Tensor,
    m: torch.Tensor,
    history: list[torch.Tensor],
    z: torch.Tensor | None,
) -> torch.Tensor:
    """The next state; `history` (newest first) is brought up to date in place.

    x, m, z: one shape, float32; z is needed where step.noise_scale is not 0
    """
    p, q = step.remember
    h = m if (p, q) == (0.0, 1.0) else p * x + q * m
    after = step.a * x + step.b[0] * h
    for weight, past in zip(step.b[1:], history, strict=False):
        after += weight * past
    if step.noise_scale and z is not None:
        after += step.noise_scale * z
    if step.keeps:
        history.insert(0, h)
        del history[3:]
    return after


def _clean(kind: str, alpha: float, sigma: float) -> Pair:
    """(p, q) of x0 = p x + q m."""
    if kind == "v_prediction":
        return alpha, -sigma
    if alpha <= 0:
        raise ConfigError(
            "model.uri: a scheduler with zero terminal SNR needs a model that predicts velocity "
            "(prediction_type v_prediction), this one predicts epsilon"
        )
    return 1 / alpha, -sigma / alpha


def _noise(kind: str, alpha: float, sigma: float) -> Pair:
    """(p, q) of eps = p x + q m."""
    return (sigma, alpha) if kind == "v_prediction" else (0.0, 1.0)


def _ddim(schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int) -> Table:
    """Song et al. 2020, arXiv 2010.02502, eq. 12."""
    source = DDIMScheduler.from_config(schedule.settings)
    source.set_timesteps(num_steps)
    stride = source.config.num_train_timesteps // num_steps
    cumulative = source.alphas_cumprod.double().numpy()
    kind, steps = schedule.prediction, []
    for t in source.timesteps[begin:].tolist():
        now, last = cumulative[t], float(source.final_alpha_cumprod)
        then = cumulative[t - stride] if t >= stride else last
        level, target = _level(now), _level(then)
        clean, noise = _clean(kind, *level), _noise(kind, *level)
        spread = eta * float(np.sqrt((1 - then) / (1 - now) * (1 - now / then)))
        towards = float(np.sqrt(1 - then - spread**2))
        a, b = (target[0] * c + towards * n for c, n in zip(clean, noise, strict=True))
        steps.append(Step(float(t), level, target, (0.0, 1.0), clean, a, (b,), spread, keeps=False))
    return Table(tuple(steps), 1.0)


def _level(cumulative: float) -> Pair:
    return float(np.sqrt(cumulative)), float(np.sqrt(1 - cumulative))


# Adams-Bashforth weights by the number of predictions there are, newest first.
_ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _plms(schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int) -> Table:
    """Liu et al. 2022, arXiv 2202.09778, pseudo linear multistep, as Stable Diffusion 1 has it."""
    if schedule.settings.get("rescale_betas_zero_snr"):
        raise ConfigError("solver='plms' can't draw from a model with zero terminal SNR; use ddim")
    source = PNDMScheduler.from_config(schedule.settings, skip_prk_steps=True)
    source.set_timesteps(num_steps)
    cumulative = source.alphas_cumprod.double().numpy()
    stride = source.config.num_train_timesteps // num_steps
    # Without the second point's repetition, which is put back for wherever one begins.
    points = list(dict.fromkeys(source.timesteps.tolist()))[begin:]
    kind, steps = schedule.prediction, []
    for held, t in enumerate(points, 1):
        now = cumulative[t]
        then = cumulative[t - stride] if t >= stride else float(source.final_alpha_cumprod)
        level, target = _level(now), _level(then)
        clean = _clean(kind, *level)
        a, b = _transfer(kind, now, then)
        weights = tuple(b * w for w in _ADAMS[min(held, 4) - 1])
        steps.append(Step(float(t), level, target, (0.0, 1.0), clean, a, weights))
        if held == 1 and len(points) > 1:
            # Heun's correction: again from the state before the first step, which was
            # (x - b m) / a, by the mean of the predictions at both ends.
            at, start = _level(cumulative[points[1]]), min(points[1] + stride, len(cumulative) - 1)
            a_again, b_again = _transfer(kind, cumulative[start], cumulative[points[1]])
            corrected = (b_again / 2, b_again / 2 - a_again / a * b)
            again = Step(
                float(points[1]), at, at, (0.0, 1.0), _clean(kind, *at), a_again / a, corrected,
                keeps=False,
            )  # fmt: skip
            steps.append(again)
    return Table(tuple(steps), 1.0)


def _transfer(kind: str, now: float, then: float) -> Pair:
    """Weights of x and m in formula (9) of the PNDM paper."""
    (p, q), a = _noise(kind, *_level(now)), float(np.sqrt(then / now))
    below = now * np.sqrt(1 - then) + np.sqrt(now * (1 - now) * then)
    e = -float((then - now) / below)
    return a + e * p, e * q


def _levels(sigmas: list[float]) -> list[Pair]:
    return [(1 / float(np.hypot(1, s)), s / float(np.hypot(1, s))) for s in sigmas]


def _euler(schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int) -> Table:
    """Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn."""
    source = EulerDiscreteScheduler.from_config(
        schedule.settings, use_karras_sigmas=karras, final_sigmas_type="zero"
    )
    source.set_timesteps(num_steps)
    return _euler_table(schedule, source, [(s, 0.0) for s in source.sigmas.tolist()], begin)


def _euler_ancestral(
    schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int
) -> Table:
    """Euler towards less noise than the next point has, the rest drawn anew (k-diffusion)."""
    source = EulerAncestralDiscreteScheduler.from_config(schedule.settings)
    source.set_timesteps(num_steps)
    sigmas = source.sigmas.double().tolist()
    aims = [(sigmas[0], 0.0)]
    for s, to in itertools.pairwise(sigmas):
        up = float(np.sqrt(to**2 * (s**2 - to**2) / s**2))
        aims.append((float(np.sqrt(max(to**2 - up**2, 0.0))), up))
    return _euler_table(schedule, source, aims, begin)


def _euler_table(schedule: NoiseSchedule, source: Any, aims: list[Pair], begin: int) -> Table:
    """aims[i]: (sigma the step into point i goes down to, sigma of fresh noise there)."""
    sigmas = source.sigmas.double().tolist()
    levels, kind, steps = _levels(sigmas), schedule.prediction, []
    for i, t in enumerate(source.timesteps.tolist()):
        down, up = aims[i + 1]
        scale = 1 / float(np.hypot(1, sigmas[i + 1]))
        noise = _noise(kind, *levels[i])
        # In sigma's own space x + (down - sigma) eps; both ends divided to unit variance.
        e = (down - sigmas[i]) * scale
        a = float(np.hypot(1, sigmas[i])) * scale
        row = Step(
            float(t), levels[i], levels[i + 1], (0.0, 1.0), _clean(kind, *levels[i]),
            a + e * noise[0], (e * noise[1],), up * scale, keeps=False,
        )  # fmt: skip
        steps.append(row)
    first = float(source.init_noise_sigma) / float(np.hypot(1, sigmas[0]))
    return Table(tuple(steps[begin:]), first)


def _dpmpp_2m(
    schedule: NoiseSchedule, num_steps: int, eta: float, karras: bool, begin: int
) -> Table:
    """Lu et al. 2022, arXiv 2211.01095, algorithm 2: multistep, second order, midpoint."""
    source = DPMSolverMultistepScheduler.from_config(
        schedule.settings, solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint",
        final_sigmas_type="zero", lower_order_final=True, use_karras_sigmas=karras,
    )  # fmt: skip
    source.set_timesteps(num_steps)
    sigmas = source.sigmas.double().tolist()
    levels, kind, steps = _levels(sigmas), schedule.prediction, []
    for i in range(begin, num_steps):
        (alpha, sigma), (alpha_to, sigma_to) = levels[i], levels[i + 1]
        k = alpha * sigma_to / sigma - alpha_to
        weights: tuple[float, ...] = (-k,)
        if begin < i < num_steps - 1:
            # Log-SNR is -log of sigma in its own space.
            ratio = np.log(sigmas[i - 1] / sigmas[i]) / np.log(sigmas[i] / sigmas[i + 1])
            second = 0.5 * k / float(ratio)
            weights = (-k - second, second)
        clean = _clean(kind, alpha, sigma)
        row = Step(
            float(source.timesteps[i]), levels[i], levels[i + 1], clean, clean,
            sigma_to / sigma, weights,
        )  # fmt: skip
        steps.append(row)
    return Table(tuple(steps), 1.0)
