import json
from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models import scheduler_checks


@pytest.mark.parametrize("is_installed", [False, True])
def test_sigmas_that_want_another_library_are_refused_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_installed: bool
) -> None:
    """Diffusers would say it when the scheduler is made, in the worker."""
    (tmp_path / "scheduler").mkdir()
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_beta_sigmas": True}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    found = object() if is_installed else None
    monkeypatch.setattr(scheduler_checks, "find_spec", lambda _: found)
    if is_installed:
        scheduler_checks.check_scheduler(tmp_path, "flow", "what")
        return
    with pytest.raises(ConfigError, match=r"use_beta_sigmas=true needs scipy: `pip install scipy`"):
        scheduler_checks.check_scheduler(tmp_path, "flow", "what")
