import pytest

from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.training import FAMILY_LOSS_KEYS
from dreambooth_ray.models.families.stable_diffusion_3 import FAMILY as STABLE_DIFFUSION_3
from dreambooth_ray.models.family import list_families
from dreambooth_ray.models.model_defaults import fill_model_defaults

TEXT = "subject: {photos: p, class_noun: robot}"


@pytest.mark.parametrize(
    ("overrides", "timesteps"), [([], "logit_normal"), (["loss.timesteps=uniform"], "uniform")]
)
def test_a_run_that_is_sent_without_its_model_gets_its_familys_loss(
    overrides: list[str], timesteps: str
) -> None:
    config = parse_config(TEXT, "x", overrides)
    sent = parse_config(dump_config(config), "stored", [])
    filled = fill_model_defaults(sent, STABLE_DIFFUSION_3)
    assert filled.loss.timesteps == timesteps
    assert filled == fill_model_defaults(config, STABLE_DIFFUSION_3)
    stored = parse_config(dump_config(filled), "stored", [])
    assert "timesteps" in stored.loss.model_fields_set
    assert fill_model_defaults(stored, STABLE_DIFFUSION_3) == filled


@pytest.mark.parametrize(
    ("overrides", "protocol"),
    [
        ([], "toyworld-brief"),
        (["model.uri=toyworld-flow"], "toyworld-brief"),
        (["model.uri=black-forest-labs/FLUX.2-klein-4B"], "brief"),
        (["choice.protocol=dreambench"], "dreambench"),
    ],
)
def test_checkpoints_are_evaluated_by_what_tells_of_their_model(
    overrides: list[str], protocol: str
) -> None:
    config = fill_model_defaults(parse_config(TEXT, "x", overrides), STABLE_DIFFUSION_3)
    assert config.choice.protocol == protocol
    assert fill_model_defaults(config, STABLE_DIFFUSION_3) == config


def test_families_choose_what_may_be_left_to_them() -> None:
    for family in list_families():
        assert family.loss_defaults.keys() <= FAMILY_LOSS_KEYS, family.name
