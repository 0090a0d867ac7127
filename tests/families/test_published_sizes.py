import pytest

from tests.families.published_sizes import PUBLISHED_MODELS

PARTS = [(name, part) for name, model in PUBLISHED_MODELS.items() for part in model.num_params]


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_published_part_has_its_parameters(name: str, part: str) -> None:
    model = PUBLISHED_MODELS[name]
    network = model.build_on_meta(part)
    num_params = sum(parameter.numel() for parameter in network.parameters())
    assert num_params == model.num_params[part]
    unit, number = model.said.get(part, ("parameters", num_params))
    assert number == (num_params if unit == "parameters" else round(2 * num_params / 2**30, 2))
