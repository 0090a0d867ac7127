import pytest

from dreambooth_ray.config.forward_pass_rules import can_be_graphed
from dreambooth_ray.config.load import dump_config, parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import ConfigError

BUCKETS = "train.buckets=true"


def make_config(*overrides: str) -> Config:
    return parse_config("subject: {photos: p, class_noun: dog}", "x", list(overrides))


def test_several_resolutions_are_read_from_the_command_line_and_back() -> None:
    config = make_config("train.resolution=[1024, 512]")
    assert config.train.sides_px == (512, 1024)
    assert config.train.side_px == 1024
    assert parse_config(dump_config(config), "x", []) == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("train.resolution=[]",), r"train\.resolution=\[\]: give a whole number"),
        (("train.resolution=[512, 4]",), "from 8 to 8192, or a list of one to eight"),
        (("train.resolution=big",), "give a whole number of pixels"),
        (("train.resolution=[512, 512]",), "has one twice"),
        (("train.crop=none",), r"train\.crop=none squeezes .*train\.buckets=true"),
        ((BUCKETS, "train.resolution=500"), r"500 is not a multiple of train\.bucket_step_px=64"),
        ((BUCKETS, "train.bucket_step_px=4"), r"train\.bucket_step_px=4.*8"),
        ((BUCKETS, "train.bucket_max_aspect=0.5"), r"train\.bucket_max_aspect"),
        ((BUCKETS, "train.compile=blocks"), r"compile=blocks is for images of one shape, and .*bu"),
        (("train.resolution=[512, 768]", "train.compile=whole"), r"and train\.resolution=\[512"),
    ],
)
def test_what_can_not_be_is_refused_by_name(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_config(*overrides)


def test_a_step_of_several_forwards_is_no_graph() -> None:
    assert can_be_graphed(make_config("train.resolution=[512, 768]"))
    assert not can_be_graphed(make_config(BUCKETS))
