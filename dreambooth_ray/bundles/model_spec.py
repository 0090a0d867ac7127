"""What a weight file says of itself, after Stability AI's model specification 1.0.0."""

from pathlib import Path

from dreambooth_ray.bundles.bundle import read_bundle_metadata
from dreambooth_ray.models.family import find_family
from dreambooth_ray.models.model_directory import base_directory
from dreambooth_ray.models.part_configs import read_part_config
from dreambooth_ray.version import __version__


def build_model_spec(directory: Path, adapter: bool) -> dict[str, str]:
    """Metadata after Stability AI's model specification 1.0.0."""
    bundle_metadata, base_folder = read_bundle_metadata(directory), base_directory(directory)
    family = find_family(base_folder)
    side_px = bundle_metadata.get("resolution", str(family.default_side(base_folder)))
    architecture = family.architecture(base_folder)
    title = (
        f"{bundle_metadata.get('identifier', '')} {bundle_metadata.get('class_noun', '')}".strip()
    )
    modelspec = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora" if adapter else architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title or directory.name,
        "modelspec.resolution": f"{side_px}x{side_px}",
        "dreambooth_ray": __version__,
    }
    if family.process == "diffusion":
        prediction_type = read_part_config(base_folder, "scheduler")["prediction_type"]
        modelspec["modelspec.prediction_type"] = {"v_prediction": "v"}.get(
            prediction_type, prediction_type
        )
    if bundle_metadata.get("prompt"):
        modelspec["modelspec.trigger_phrase"] = bundle_metadata["prompt"]
    return modelspec
