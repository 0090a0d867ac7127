from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.empty_network_checks import check_networks
from dreambooth_ray.models.family import find_family
from tests.families.hostile_directories import DAMAGES
from tests.families.tiny_models import build_tiny


@pytest.mark.parametrize("name", ["z-image", "flux2-klein"])
def test_weights_are_compared_with_the_network_that_a_configuration_makes(
    name: str, tmp_path: Path
) -> None:
    directory = build_tiny(name, tmp_path / "model")
    family = find_family(directory)
    check_networks(directory, family)
    for part, damage in zip(
        family.networks, ("shape that does not fit", "tensor missing", "shard cut off"), strict=True
    ):
        damaged = build_tiny(name, tmp_path / part.name)
        DAMAGES[damage].apply(damaged, part.name)
        with pytest.raises(ConfigError, match=part.name):
            check_networks(damaged, family)
