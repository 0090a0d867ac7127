"""What a weight file says of itself, after Stability AI's model specification 1.0.0."""

from pathlib import Path

from dreambooth_ray.bundles.bundle import read_bundle_about
from dreambooth_ray.models.model_directory import base_directory, compute_latent_factor
from dreambooth_ray.models.part_configs import SAMPLE_SIZE, read_part_config
from dreambooth_ray.version import __version__


def is_v2(directory: Path) -> bool:
    """Whether the text encoder is 2.x's open_clip, told by its activation, or 1.x's CLIP."""
    text_encoder = read_part_config(base_directory(directory), "text_encoder")
    return bool(text_encoder["hidden_act"] == "gelu")


def build_model_spec(directory: Path, adapter: bool) -> dict[str, str]:
    """Metadata after Stability AI's model specification 1.0.0."""
    about, base = read_bundle_about(directory), base_directory(directory)
    factor = compute_latent_factor(read_part_config(base, "vae"))
    sample_size = read_part_config(base, "unet")["sample_size"] or SAMPLE_SIZE
    side = about.get("resolution", str(sample_size * factor))
    architecture = f"stable-diffusion-v{2 if is_v2(directory) else 1}"
    title = f"{about.get('identifier', '')} {about.get('class_noun', '')}".strip()
    predicts = {"v_prediction": "v"}
    kind = read_part_config(base, "scheduler")["prediction_type"]
    modelspec = {
        "modelspec.saibuild_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora" if adapter else architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title or directory.name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": predicts.get(kind, kind),
        "dreambooth_ray": __version__,
    }
    if about.get("prompt"):
        modelspec["modelspec.trigger_phrase"] = about["prompt"]
    return modelspec
