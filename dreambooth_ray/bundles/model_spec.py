"""What a weight file says of itself, after Stability AI's model specification 1.0.0."""

from pathlib import Path

from dreambooth_ray.bundles.bundle import read_bundle_about
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import base_directory
from dreambooth_ray.models.part_configs import read_part_config
from dreambooth_ray.version import __version__


def build_model_spec(directory: Path, adapter: bool) -> dict[str, str]:
    """Metadata after Stability AI's model specification 1.0.0."""
    about, base = read_bundle_about(directory), base_directory(directory)
    family = find_family(base)
    side = about.get("resolution", str(family.default_side(base)))
    architecture = family.architecture(base)
    title = f"{about.get('identifier', '')} {about.get('class_noun', '')}".strip()
    modelspec = {
        "modelspec.saibuild_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora" if adapter else architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title or directory.name,
        "modelspec.resolution": f"{side}x{side}",
        "dreambooth_ray": __version__,
    }
    if family.process == "diffusion":
        kind = read_part_config(base, "scheduler")["prediction_type"]
        modelspec["modelspec.prediction_type"] = {"v_prediction": "v"}.get(kind, kind)
    if about.get("prompt"):
        modelspec["modelspec.trigger_phrase"] = about["prompt"]
    return modelspec
