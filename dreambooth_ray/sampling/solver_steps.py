"""A solver's steps as rows of a table, and how one is made; see `solvers` for the formula."""

import math
from dataclasses import dataclass

import torch

from dreambooth_ray.errors import ConfigError

Pair = tuple[float, float]


@dataclass(frozen=True)
class SolverStep:
    """One row of a table.

    level, next_level: (alpha, sigma) of the state before and after
    history_weights:   (p, q) of h = p x + q m
    clean_weights:     (p, q) of the predicted x0 = p x + q m
    keeps_history:     whether h is stored for later steps
    """

    timestep: float
    level: Pair
    next_level: Pair
    history_weights: Pair
    clean_weights: Pair
    a: float
    b: tuple[float, ...]
    noise_scale: float = 0.0
    keeps_history: bool = True


@dataclass(frozen=True)
class SolverTable:
    """All steps of one trajectory. initial_scale: of the standard normal it starts from."""

    steps: tuple[SolverStep, ...]
    initial_scale: float


def x0_coefficients(kind: str, alpha: float, sigma: float) -> Pair:
    """(p, q) of x0 = p x + q m."""
    if kind == "v_prediction":
        return alpha, -sigma
    if alpha <= 0:
        raise ConfigError(
            "model.uri: a scheduler with zero terminal SNR needs a model that predicts velocity "
            "(prediction_type v_prediction), this one predicts epsilon"
        )
    return 1 / alpha, -sigma / alpha


def eps_coefficients(kind: str, alpha: float, sigma: float) -> Pair:
    """(p, q) of eps = p x + q m."""
    return (sigma, alpha) if kind == "v_prediction" else (0.0, 1.0)


def compute_alpha_and_sigma(alpha_bar: float) -> Pair:
    """(alpha, sigma) by the share of the variance that is the image's."""
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def apply_step(
    step: SolverStep,
    x: torch.Tensor,
    m: torch.Tensor,
    history: list[torch.Tensor],
    z: torch.Tensor | None,
) -> torch.Tensor:
    """The next state; `history` (newest first) is updated in place.

    x, m, z: one shape, float32; z is needed where step.noise_scale is not 0
    """
    p, q = step.history_weights
    h = m if (p, q) == (0.0, 1.0) else p * x + q * m
    next_state = step.a * x + step.b[0] * h
    for history_weight, past_prediction in zip(step.b[1:], history, strict=False):
        next_state += history_weight * past_prediction
    if step.noise_scale and z is not None:
        next_state += step.noise_scale * z
    if step.keeps_history:
        history.insert(0, h)
        del history[3:]  # the newest is not in it yet: four in all, the most that any row weighs
    return next_state
