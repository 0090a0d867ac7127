"""What a configuration leaves to the model: filled in once the model is known."""

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import FAMILY_LOSS_KEYS
from dreambooth_ray.models.family import ModelFamily
from dreambooth_ray.models.model_source import find_shipped


def fill_model_defaults(config: Config, family: ModelFamily) -> Config:
    """The configuration with the family's own values where nobody has set one.

    A run is stored with them, so that it goes on as it began whatever a later version prefers.
    raises: ConfigError where one does not go with what is set
    """
    lora = config.train.lora
    lora = lora.model_copy(
        update={
            "target_modules": lora.target_modules or family.lora_targets,
            "text_target_modules": lora.text_target_modules or family.text_lora_targets or None,
        }
    )
    sections = {
        name: section.model_copy(
            update=section.sampling_params.fill_defaults(family.sampling_defaults).model_dump()
        )
        for name, section in (("prior", config.prior), ("sample", config.sample))
    }
    given_loss_keys = config.loss.model_fields_set
    # What is given in an update counts as set, and so is stored.
    loss_config = config.loss.model_copy(
        update={key: getattr(config.loss, key) for key in FAMILY_LOSS_KEYS}
        | {k: v for k, v in family.loss_defaults.items() if k not in given_loss_keys}
    )
    train = config.train.model_copy(
        update={
            "lora": lora,
            "text_encoder": config.train.text_encoder and bool(family.trainable_text_encoders),
        }
    )
    checkpoint_choice = config.choice
    if checkpoint_choice.protocol is None:
        protocol_name = "toyworld-brief" if find_shipped(config.model.source) else "brief"
        checkpoint_choice = checkpoint_choice.model_copy(update={"protocol": protocol_name})
    section_changes = {"train": train, "loss": loss_config, "choice": checkpoint_choice}
    return config.model_copy(update={**section_changes, **sections})
