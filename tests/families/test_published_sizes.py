import re
from importlib.resources import files
from pathlib import Path

import pytest

from dreambooth_ray.config.load import load_config, parse_config
from dreambooth_ray.memory.training_memory import estimate_training_footprint
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_defaults import fill_model_defaults
from tests.families.proven_families import PROVEN_MODELS, TRAINED_MODELS
from tests.families.published_sizes import PUBLISHED_MODELS

PARTS = [(name, part) for name, model in PUBLISHED_MODELS.items() for part in model.num_params]


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_published_part_has_its_parameters(name: str, part: str) -> None:
    model = PUBLISHED_MODELS[name]
    network = model.build_on_meta(part)
    num_params = sum(parameter.numel() for parameter in network.parameters())
    assert num_params == model.num_params[part]
    unit, number = model.said.get(part, ("parameters", num_params))
    assert number == (num_params if unit == "parameters" else round(2 * num_params / 2**30, 2))


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.fault
@pytest.mark.parametrize("name", [n for n in TRAINED_MODELS if PROVEN_MODELS[n].published])
def test_the_memory_of_a_step_is_predicted_at_published_size(name: str, tmp_path: Path) -> None:
    """On the meta device: what is frozen is the denoiser in half, and checkpoints save memory."""
    model = PUBLISHED_MODELS[PROVEN_MODELS[name].published]
    directory = model.write_configs(tmp_path / "model")
    family = find_family(directory)
    overrides = ["train.method=lora", "train.precision=bf16-mixed", "cluster.gpus=true"]
    overrides += [f"train.resolution={family.default_side(directory)}", "prior.count=0"]
    footprints = []
    for checkpointing in ("true", "false"):
        overrides.append(f"train.gradient_checkpointing={checkpointing}")
        config = parse_config("subject: {photos: p, class_noun: dog}", "x", overrides)
        footprints.append(
            estimate_training_footprint(fill_model_defaults(config, family), directory)
        )
    held, whole = footprints
    weights = 2 * model.num_params[family.denoiser.name]
    assert weights <= held.frozen_bytes <= 1.1 * weights
    assert held.frozen_bytes == whole.frozen_bytes
    assert 0 < held.activations_bytes < whole.activations_bytes


# Recipes that say what a step is predicted to take, by the model that they are for.
RECIPES = {f"z-image-lora-{size}gb": "z-image" for size in (16, 24, 48, 80)}
RECIPES |= dict.fromkeys(("sdxl-lora-16gb", "sdxl-lora-24gb", "sdxl-full-80gb"), "sdxl")
RECIPES |= {f"flux2-klein-lora-{size}gb": "flux2-klein-4b" for size in (16, 24)}
RECIPES |= {f"flux2-klein-lora-{size}gb": "flux2-klein-9b" for size in (48, 80)}
RECIPES |= {f"flux2-dev-lora-{size}gb": "flux2-dev" for size in (48, 80, 141)}
RECIPES |= {f"chroma-lora-{size}gb": "chroma" for size in (24, 48)}
RECIPES |= {f"qwen-image-lora-{size}gb": "qwen-image" for size in (24, 48, 80)}
RECIPES |= {f"krea2-lora-{size}gb": "krea2" for size in (32, 48)}
RECIPES |= {f"sd3-lora-{size}gb": "sd3-medium" for size in (16, 24)}
RECIPES |= {f"sana-lora-{size}gb": "sana-1600m" for size in (16, 24)}
RECIPES |= {"flux1-lora-48gb": "flux1-dev"}
BYTES_A_WEIGHT = {"nf4": 0.5, "int8": 1, "fp8": 1, "none": 2}


# torch says that norms in float32 have no fused kernel.
@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.fault
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_what_its_step_is_predicted_to_take(recipe: str, tmp_path: Path) -> None:
    model = PUBLISHED_MODELS[RECIPES[recipe]]
    text = (files("dreambooth_ray.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
    said = re.search(r"step (?:is predicted to take|takes) ([\d.]+) GiB", text)
    assert said is not None
    config = load_config(recipe, ["subject.photos=photos", "subject.class_noun=dog"])
    directory = model.write_configs(tmp_path / "model")
    config = fill_model_defaults(config, find_family(directory))
    footprint = estimate_training_footprint(config, directory)
    assert footprint.total_bytes / 2**30 == pytest.approx(float(said[1]), abs=0.06)
    bytes_a_weight = BYTES_A_WEIGHT[config.model.quantization]
    held = [find_family(model.configs).denoiser.name] if config.train.method == "lora" else []
    if config.train.text_encoder:
        held += [name for name in model.num_params if name.startswith("text_encoder")]
    weights = bytes_a_weight * sum(model.num_params[name] for name in held)
    # Norms and embeddings stay in float32, and four bits need scales.
    assert weights <= footprint.frozen_bytes <= 1.1 * weights
    card = float(recipe.removesuffix("gb").rpartition("-")[2]) * 1e9 / 2**30
    assert footprint.total_bytes / 2**30 <= 0.9 * card
