"""b. The engine's latents are those of diffusers' own pipeline; alone and in any company."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dreambooth_ray.models.components import load_components
from dreambooth_ray.sampling.engine import Engine
from dreambooth_ray.sampling.request import Request
from tests.families.adapters import write_adapter
from tests.families.proven_families import PROVEN_MODELS, ProvenModel
from tests.families.reference_pipelines import PIPELINE_STEPS, pipeline_latents

PROMPT = "a photo of sks robot"
SIZE = {"width_px": 64, "height_px": 64}


@dataclass(frozen=True)
class LoadedModel:
    """An engine of a tiny model with an adapter that is named `one`."""

    model: ProvenModel
    directory: Path
    engine: Engine
    convert: Callable[[Tensor], Tensor]

    @property
    def guidance(self) -> float:
        """The largest that it takes."""
        return self.model.guidance[-1]

    @property
    def negative(self) -> dict[str, str]:
        """A negative prompt, where there is one."""
        text = self.model.negative_prompt
        return {"negative_prompt": text} if text else {}

    def make_request(self, steps: int, guidance: float, **changes: Any) -> Request:
        values = {"prompt": PROMPT, "seed": 0, "solver": self.model.solver, **SIZE} | changes
        return Request(num_inference_steps=steps, guidance_scale=guidance, **values)

    def sample(self, *requests: Request) -> list[Tensor]:
        """(C, h, w) latents as the pipeline gives them."""
        return [self.convert(output.latents) for output in self.engine.sample(list(requests))]

    def reference(self, negative_prompt: str | None = None, **options: Any) -> Tensor:
        options = {**self.model.options, **options}
        return pipeline_latents(self.directory, PROMPT, negative_prompt, **options)[0]


@pytest.fixture(scope="module")
def loaded(
    proven: str, tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> LoadedModel:
    parts = load_components(tiny_directory)
    engine = Engine(parts)
    adapter = write_adapter(tiny_directory, tmp_path_factory.mktemp("adapters") / "one")
    engine.add_adapter("one", adapter)
    model = PROVEN_MODELS[proven]
    return LoadedModel(model, tiny_directory, engine, partial(model.convert, parts))


def differ(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def tolerance(latents: Tensor) -> float:
    """1e-4 of latents of a trained model, which are about one; random ones grow beyond that."""
    return 1e-4 * max(1.0, float(latents.abs().max()))


STEPS = [PIPELINE_STEPS[0], *(pytest.param(n, marks=pytest.mark.fault) for n in PIPELINE_STEPS[1:])]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("is_guided", [False, True])
def test_latents_are_the_pipelines_own(loaded: LoadedModel, steps: int, is_guided: bool) -> None:
    guidance = loaded.guidance if is_guided else 1.0
    reference = loaded.reference(steps=steps, guidance=guidance)
    (latents,) = loaded.sample(loaded.make_request(steps, guidance))
    assert latents.shape == reference.shape
    assert differ(latents, reference) <= tolerance(reference)


def test_a_negative_prompt_is_the_pipelines_own(loaded: LoadedModel) -> None:
    if loaded.model.negative_prompt is None:
        pytest.skip("the pipeline takes none")
    negative, guidance = loaded.model.negative_prompt, loaded.guidance
    reference = loaded.reference(negative, steps=4, guidance=guidance)
    (latents,) = loaded.sample(loaded.make_request(4, guidance, negative_prompt=negative))
    assert differ(latents, reference) <= tolerance(reference)


def test_latents_do_not_depend_on_their_company(loaded: LoadedModel) -> None:
    guidance = loaded.guidance
    requests = [
        loaded.make_request(4, guidance),
        loaded.make_request(4, 1.0, prompt="a robot on a table in the rain, by night " * 3),
        loaded.make_request(4, guidance, prompt="a cat", seed=3, **loaded.negative),
        loaded.make_request(10, min(2.0, guidance), adapter="one", seed=4),
        loaded.make_request(3, guidance, adapter="one", prompt="a red robot on the beach"),
    ]
    mixed = loaded.sample(*requests)
    for request, in_company in zip(requests, mixed, strict=True):
        (alone,) = loaded.sample(request)
        assert differ(alone, in_company) <= tolerance(alone)
    reference = loaded.reference(steps=4, guidance=guidance)
    assert differ(mixed[0], reference) <= tolerance(reference)


def test_what_a_request_says_matters(loaded: LoadedModel) -> None:
    guidance = loaded.guidance
    changes: list[dict[str, object]] = [{"prompt": "a cat"}, {"seed": 1}, {"adapter": "one"}]
    if loaded.model.negative_prompt:
        changes.append({"negative_prompt": "blue"})
    others = loaded.sample(*(loaded.make_request(4, guidance, **change) for change in changes))
    others += loaded.sample(loaded.make_request(4, 1.0)) if guidance > 1 else []
    (base,) = loaded.sample(loaded.make_request(4, guidance))
    assert min(differ(base, other) for other in others) > 1e-2
