"""The model that a checkpoint's bundle would have, in memory."""

from pathlib import Path

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.trainable_params import apply_train_method, load_trainable_params
from dreambooth_ray.storage.fence import CheckpointId
from dreambooth_ray.storage.scratch import scratch_folder
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.convert import verified_weights
from dreambooth_ray.training.checkpoint.download import download_weight_files


def load_checkpoint_model(
    config: Config, directory: Path, run: Store, checkpoint: CheckpointId
) -> Components:
    """The base model of a directory with the weights of a checkpoint.

    raises: CheckpointError if the checkpoint is damaged, or gone
    """
    components = load_components(directory)
    apply_train_method(config, components)
    with scratch_folder("sampling", config.storage.scratch) as folder:
        try:
            weight_files = download_weight_files(run, checkpoint, folder)
            with verified_weights(weight_files) as trained_weights:
                load_trainable_params(components, trained_weights)
        except FileNotFoundError as error:  # rotated away while it was read where it lies
            raise CheckpointError(f"{run.uri}/{checkpoint.name} is gone: {error}") from error
    return components
