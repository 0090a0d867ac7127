"""`dreambooth lr`: what is refused before anything is loaded."""

import pytest

from dreambooth_ray.cli.learning_rate_finder import lr
from dreambooth_ray.errors import ConfigError


@pytest.mark.parametrize(
    "rates",
    [(0.1, 0.01), (0.0, 0.1), (-1e-3, 0.1), (float("nan"), 0.1), (1e-7, float("inf"))],
)
def test_rates_that_are_no_ramp_are_named(rates: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=f"--lowest={rates[0]:g} --highest={rates[1]:g}"):
        lr("toy-robot", lowest=rates[0], highest=rates[1])
