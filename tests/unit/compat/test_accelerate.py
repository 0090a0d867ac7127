import pytest
from accelerate import Accelerator

from dreambooth_ray.compat.accelerate import reset_accelerator_state
from tests.unit.compat.private_api import check_parameters, find_private


def test_accelerate_still_has_what_is_used_of_it() -> None:
    (reset,) = find_private(
        "accelerate", "accelerate.state", "AcceleratorState._reset_state", user="accelerate.py"
    )
    check_parameters("accelerate", reset, ["reset_partial_state"], user="accelerate.py")


def test_each_accelerator_has_its_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # As a training of another test may have left it.
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for precision in ("bf16", "no"):
        reset_accelerator_state()
        assert Accelerator(cpu=True, mixed_precision=precision).mixed_precision == precision
    reset_accelerator_state()
