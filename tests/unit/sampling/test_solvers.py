"""Each table against diffusers' scheduler, over whole trajectories."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)

from dreambooth_ray.config.sampling_params import ETA_SOLVERS, KARRAS_SOLVERS
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.objective.noise_schedule import NoiseScheduleConfig
from dreambooth_ray.sampling.solver_steps import apply_step
from dreambooth_ray.sampling.solvers import build_solver_table

BASE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "timestep_spacing": "leading",
}
CLASSES = {
    "ddim": DDIMScheduler,
    "plms": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
}


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Some smooth function of state and time."""
    return torch.tanh(x.roll(1, -1) * 0.7 + x * 0.2 + t / 1500) + 0.1 * x


def sample_with_diffusers(
    solver: str, steps: int, config: dict[str, Any], eta: float, karras: bool, z: torch.Tensor
) -> torch.Tensor:
    extra: dict[str, Any] = {"skip_prk_steps": True} if solver == "plms" else {}
    if karras:
        extra["use_karras_sigmas"] = True
    scheduler = CLASSES[solver].from_config(config, **extra)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(5)
    x = z * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        m = network(scheduler.scale_model_input(x, t), float(t))
        options: dict[str, Any] = {}
        if solver in ETA_SOLVERS:
            options = {"eta": eta, "generator": generator}
        if solver in ("euler_a", "lcm"):
            options = {"generator": generator}
        x = scheduler.step(m, t, x, **options).prev_sample
    return x


def sample_with_table(
    solver: str, steps: int, config: dict[str, Any], eta: float, karras: bool, z: torch.Tensor
) -> torch.Tensor:
    solver_table = build_solver_table(
        NoiseScheduleConfig.from_config(config), solver, steps, eta, karras
    )
    generator = torch.Generator().manual_seed(5)
    x, history = z * solver_table.initial_scale, []
    for step in solver_table.steps:
        noise = None
        if step.noise_scale:
            noise = torch.randn(z.shape, generator=generator)
        x = apply_step(step, x, network(x, step.timestep), history, noise)
    return x


CASES = [
    (solver, eta, karras)
    for solver in CLASSES
    for eta, karras in [(0.0, False), (0.5, False), (1.0, False), (0.0, True)]
    if (not eta or solver in ETA_SOLVERS) and (not karras or solver in KARRAS_SOLVERS)
]


@pytest.mark.parametrize("steps", [10, 25, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("solver", "eta", "karras"), CASES)
def test_a_trajectory_is_that_of_diffusers(
    solver: str, eta: float, karras: bool, spacing: str, prediction: str, steps: int
) -> None:
    config = {**BASE, "prediction_type": prediction, "timestep_spacing": spacing}
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    reference = sample_with_diffusers(solver, steps, config, eta, karras, z)
    latents = sample_with_table(solver, steps, config, eta, karras, z)
    assert torch.allclose(latents, reference, atol=1e-4, rtol=1e-4), (
        (latents - reference).abs().max()
    )


@pytest.mark.parametrize("solver", ["ddim", "euler", "euler_a", "dpmpp_2m", "lcm", "tcd"])
def test_zero_terminal_snr(solver: str) -> None:
    config = {
        **BASE,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    reference = sample_with_diffusers(solver, 25, config, 0.0, False, z)
    latents = sample_with_table(solver, 25, config, 0.0, False, z)
    assert torch.allclose(latents, reference, atol=2e-4, rtol=1e-3), (
        (latents - reference).abs().max()
    )


def test_zero_terminal_snr_needs_velocity() -> None:
    config = {**BASE, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ConfigError, match="v_prediction"):
        build_solver_table(NoiseScheduleConfig.from_config(config), "ddim", 10)
    with pytest.raises(ConfigError, match="solver='plms'"):
        build_solver_table(
            NoiseScheduleConfig.from_config({**config, "prediction_type": "v_prediction"}),
            "plms",
            10,
        )


@pytest.mark.parametrize("solver", list(CLASSES))
def test_a_later_start_ends_at_the_same_level(solver: str) -> None:
    full_table = build_solver_table(NoiseScheduleConfig.from_config(BASE), solver, 20)
    partial_table = build_solver_table(NoiseScheduleConfig.from_config(BASE), solver, 20, begin=12)
    assert partial_table.steps[-1].next_level == pytest.approx(full_table.steps[-1].next_level)
    assert len({s.timestep for s in partial_table.steps}) == 8


@pytest.mark.parametrize("solver", list(CLASSES))
def test_the_truth_is_a_fixed_point(solver: str) -> None:
    """Fed the noise that is really in x, a step lands on the next level of the same pair."""
    clean, noise = torch.randn(2, 1, 4, 4, 4).unbind()
    solver_table, history = (
        build_solver_table(NoiseScheduleConfig.from_config(BASE), solver, 12),
        [],
    )
    x = solver_table.steps[0].level[0] * clean + solver_table.steps[0].level[1] * noise
    for step in solver_table.steps:
        predicted = step.clean_weights[0] * x + step.clean_weights[1] * noise
        assert torch.allclose(predicted, clean, atol=1e-3)
        after = apply_step(step, x, noise, history, None)
        if step.noise_scale:
            after = step.next_level[0] * clean + step.next_level[1] * noise
        x = after
    assert torch.allclose(x, solver_table.steps[-1].next_level[0] * clean
                          + solver_table.steps[-1].next_level[1] * noise, atol=1e-3)  # fmt: skip


def test_more_steps_than_were_trained_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_inference_steps=2000"):
        build_solver_table(NoiseScheduleConfig.from_config({**BASE}), "ddim", 2000)


@pytest.mark.parametrize("solver", ["lcm", "tcd"])
def test_more_steps_than_models_are_distilled_at_are_refused(solver: str) -> None:
    schedule = NoiseScheduleConfig.from_config({**BASE, "original_inference_steps": 40})
    with pytest.raises(ConfigError, match=rf"num_inference_steps=41 is more than 40, .*{solver}"):
        build_solver_table(schedule, solver, 41)
