"""What a run trains on, and what it is validated on."""

from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.prior_set import PriorSet
from dreambooth_ray.data.subject import read_photographs_for_subject_config, split_photographs
from dreambooth_ray.models.components import Components
from dreambooth_ray.training.callbacks.validation import ValidationSet
from dreambooth_ray.training.dataset import TrainingDataset


def make_datasets(
    config: Config,
    components: Components,
    priors: PriorSet | None,
    rank_and_world_size: tuple[int, int],
) -> tuple[TrainingDataset, ValidationSet | None]:
    """Photographs of all subjects, without those held out; and these, where there is validation.

    components: with VAE and frozen text encoders where they encode
    raises: DataError for photographs that can't be used
    """
    photograph_splits = [
        split_photographs(config, read_photographs_for_subject_config(config, s))
        for s in config.all_subjects
    ]
    dataset = TrainingDataset(
        config,
        components,
        [trained for trained, _ in photograph_splits],
        priors,
        rank_and_world_size,
    )
    held_out_photographs = [
        photograph for _, held_out in photograph_splits for photograph in held_out
    ]
    validation_set = (
        ValidationSet(config, components, held_out_photographs, priors)
        if config.validation.every
        else None
    )
    return dataset, validation_set
