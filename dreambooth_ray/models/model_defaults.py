"""What a configuration leaves to the model: filled in once the model is known."""

from dreambooth_ray.config.schema import Config
from dreambooth_ray.config.training import FAMILY_LOSS_KEYS
from dreambooth_ray.models.family import ModelFamily
from dreambooth_ray.models.model_source import find_packaged_model


def fill_model_defaults(config: Config, family: ModelFamily) -> Config:
    """The configuration with the family's own values where nobody has set one.

    A run is stored with them, so that it goes on as it began whatever a later version prefers.
    raises: ConfigError where one does not go with what is set
    """
    lora_config = config.train.lora
    lora_config = lora_config.model_copy(
        update={
            "target_modules": lora_config.target_modules or family.lora_targets,
            "text_target_modules": lora_config.text_target_modules
            or family.text_lora_targets
            or None,
        }
    )
    sampling_sections = {
        section_name: section.model_copy(
            update=section.sampling_params.fill_defaults(family.sampling_defaults).model_dump()
        )
        for section_name, section in (("prior", config.prior), ("sample", config.sample))
    }
    given_loss_keys = config.loss.model_fields_set
    # What is given in an update counts as set, and so is stored.
    loss_config = config.loss.model_copy(
        update={loss_key: getattr(config.loss, loss_key) for loss_key in FAMILY_LOSS_KEYS}
        | {k: v for k, v in family.loss_defaults.items() if k not in given_loss_keys}
    )
    train_config = config.train.model_copy(
        update={
            "lora": lora_config,
            "text_encoder": config.train.text_encoder and bool(family.trainable_text_encoders),
        }
    )
    choice_config = config.choice
    if choice_config.protocol is None:
        evaluation_protocol = (
            "toyworld-brief" if find_packaged_model(config.model.source) else "brief"
        )
        choice_config = choice_config.model_copy(update={"protocol": evaluation_protocol})
    section_changes = {"train": train_config, "loss": loss_config, "choice": choice_config}
    return config.model_copy(update={**section_changes, **sampling_sections})
