"""What an evaluation is asked for, from what a caller gives: protocol, subject and session."""

from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_ray.evaluation.model_evaluation import EvaluatedModel
    from dreambooth_ray.evaluation.protocol import EvaluationProtocol

# ruff: noqa: PLC0415


def load_evaluation_protocol(name: str, dino: str, clip: str) -> "EvaluationProtocol":
    """The protocol, with other encoders where they are given."""
    from dreambooth_ray.evaluation.protocol import load_protocol

    protocol = load_protocol(name)
    encoder_overrides = {"dino": dino} if dino else {}
    encoder_overrides |= {"clip_i": clip, "clip_t": clip} if clip else {}
    encoders = protocol.encoders.model_copy(update=encoder_overrides)
    return protocol.model_copy(update={"encoders": encoders})


def read_local_run_config(model: str) -> Config | None:
    """The configuration of a run by its folder; None for any other model."""
    from dreambooth_ray.runs import read_run_config
    from dreambooth_ray.storage import paths
    from dreambooth_ray.storage.store import Store

    run_folder = Path(model).expanduser()
    if not (run_folder / paths.CONFIG).is_file():
        return None
    return read_run_config(Store(str(run_folder)))


def fill_evaluated_model(
    model: str, photos: str, identifier: str, class_noun: str
) -> "EvaluatedModel":
    """What to evaluate; the bundle says what the caller does not.

    raises: ConfigError naming the option that neither gives, DataError for photographs
    """
    from dreambooth_ray.bundles.bundle import read_bundle_metadata
    from dreambooth_ray.evaluation.model_evaluation import build_evaluated_model
    from dreambooth_ray.models.model_directory import model_directory

    directory = model_directory(model, key="MODEL")
    bundle_metadata = read_bundle_metadata(directory)
    values_by_option = {
        "--photos": photos,
        "--identifier": identifier or bundle_metadata.get("identifier", ""),
        "--class-noun": class_noun or bundle_metadata.get("class_noun", ""),
    }
    for option_name, option_value in values_by_option.items():
        if not option_value:
            raise ConfigError(f"{option_name} is not given, and {model} does not know it; give it")
    size_px = int(bundle_metadata["resolution"]) if "resolution" in bundle_metadata else None
    return build_evaluated_model(
        directory,
        Path(photos).expanduser(),
        values_by_option["--identifier"],
        values_by_option["--class-noun"],
        size_px,
    )


def make_ray_session_config(actors: int, gpus: bool, address: str) -> Config:
    """Configuration of a session: where it runs, and for how many actors."""
    from dreambooth_ray.config.machines import ClusterConfig
    from dreambooth_ray.config.prior import PriorConfig
    from dreambooth_ray.config.training import SubjectConfig

    placeholder_subject = SubjectConfig(photos=".", class_noun="any")  # of no matter to a session
    cluster_config = ClusterConfig(address=address or None, gpus=gpus)
    return Config(
        subject=placeholder_subject, prior=PriorConfig(actors=actors), cluster=cluster_config
    )
