"""The model that a checkpoint's bundle would have, in memory."""

import tempfile
from pathlib import Path

from dreambooth_ray.config.schema import Config
from dreambooth_ray.models.components import Components, load_components
from dreambooth_ray.models.trainable_params import apply_method, load_trainable_params
from dreambooth_ray.storage.fence import CheckpointId
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.convert import load_trained_weights
from dreambooth_ray.training.checkpoint.download import restore_checkpoint


def load_checkpoint_model(
    config: Config, directory: Path, run: Store, checkpoint: CheckpointId
) -> Components:
    """The base model of a directory with the weights of a checkpoint.

    raises: CheckpointError if the checkpoint is damaged, or gone
    """
    parts = load_components(directory)
    apply_method(config, parts)
    with tempfile.TemporaryDirectory(prefix="dreambooth-checkpoint-") as folder:
        state = restore_checkpoint(run, checkpoint, Path(folder))
        load_trainable_params(parts, load_trained_weights(state))
    return parts
