import os

import pytest

from dreambooth_ray.compat.ray_environment import setting_default_environment_variables


def test_settings_of_the_user_go_first_and_all_is_as_it_was_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_CHOSEN", "by the user")
    monkeypatch.delenv("RAY_NEW", raising=False)
    with setting_default_environment_variables({"RAY_CHOSEN": "by us", "RAY_NEW": "by us"}):
        assert (os.environ["RAY_CHOSEN"], os.environ["RAY_NEW"]) == ("by the user", "by us")
        # What others set meanwhile is theirs.
        monkeypatch.setenv("OTHER", "1")
    assert os.environ["RAY_CHOSEN"] == "by the user"
    assert "RAY_NEW" not in os.environ
    assert os.environ["OTHER"] == "1"
