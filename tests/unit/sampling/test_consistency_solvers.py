"""Models distilled for a few steps: images of diffusers' own pipelines, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler, TCDScheduler
from diffusers.schedulers import scheduling_lcm, scheduling_tcd

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.components import load_pipeline
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_checks import check_training_settings
from dreambooth_ray.objective import noise
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request

PROMPT, SEED, STEPS = "a photo of a robot", 5, 4
SCHEDULERS: dict[str, tuple[Any, Any]] = {
    "lcm": (LCMScheduler, scheduling_lcm),
    "tcd": (TCDScheduler, scheduling_tcd),
}


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(tiny_model)


def sample_pipeline(
    directory: Path, solver: str, eta: float, guidance: float, patch: pytest.MonkeyPatch
) -> torch.Tensor:
    """With the engine's noise at each step."""
    scheduler_class, module = SCHEDULERS[solver]
    steps = iter(range(STEPS))

    def draw(shape: tuple[int, ...], **_: object) -> torch.Tensor:
        return noise.sample_normal(SEED, "solver", next(steps), [0], tuple(shape[1:]))

    patch.setattr(module, "randn_tensor", draw)
    pipeline = load_pipeline(directory)
    pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, clip_sample=False)
    latents: torch.Tensor = pipeline(
        PROMPT, num_inference_steps=STEPS, guidance_scale=guidance, eta=eta, output_type="latent",
        generator=torch.Generator().manual_seed(SEED),
    ).images  # fmt: skip
    return latents[0]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(("solver", "eta"), [("lcm", 0.0), ("tcd", 0.0), ("tcd", 0.3)])
def test_latents_are_those_of_the_pipeline(
    engine: Engine,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    solver: str,
    eta: float,
    guidance: float,
) -> None:
    request = Request(
        PROMPT, SEED, solver=solver, num_inference_steps=STEPS, guidance_scale=guidance, eta=eta
    )
    # In company of requests of other solvers and lengths.
    others = [Request("a cat", 3, solver="ddim"), Request(PROMPT, 8, solver="tcd", eta=1.0)]
    ours = engine.sample([others[0], request, others[1]])[1].latents
    theirs = sample_pipeline(tiny_model, solver, eta, guidance, monkeypatch)
    assert (ours - theirs).abs().max() <= 1e-4
    assert torch.equal(engine.sample([request])[0].latents, engine.sample([request])[0].latents)


@pytest.mark.parametrize("solver", SCHEDULERS)
def test_a_model_with_such_a_scheduler_is_sampled_by_it_and_not_trained(
    tiny_model: Path, tmp_path: Path, solver: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model, directory)
    path = directory / "scheduler" / "scheduler_config.json"
    name = SCHEDULERS[solver][0].__name__
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name}))
    family = find_family(directory)
    assert family.sampling_defaults == {
        "solver": solver, "num_inference_steps": 4, "guidance_scale": 1.0
    }  # fmt: skip
    config = parse_config("subject: {photos: p, class_noun: x}", "x", [f"model.uri={directory}"])
    with pytest.raises(ConfigError, match=rf"{name}.* is that of models distilled"):
        check_training_settings(config, directory)
    (image,) = Engine(directory).sample([Request(PROMPT, SEED)])
    assert image.request.params.solver == solver
    assert type(load_pipeline(directory).scheduler).__name__ == name
