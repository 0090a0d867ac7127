import pytest
from typer.testing import CliRunner

from dreambooth_ray.cli.main import app
from dreambooth_ray.errors import ConfigError


@pytest.mark.parametrize("class_noun", ["", " "])
def test_a_class_noun_that_is_empty_is_refused_first(class_noun: str) -> None:
    arguments = ["identifier", "toyworld", "--class-noun", class_noun, "--encoder", "nowhere"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("--class-noun is empty")
