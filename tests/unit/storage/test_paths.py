from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.storage import paths


@given(st.sets(st.integers(0, 99_999_999), max_size=20))
def test_checkpoint_names_give_their_steps_back_in_order(steps: set[int]) -> None:
    names = [paths.checkpoint(s).removeprefix(f"{paths.CHECKPOINTS}/") + ".json" for s in steps]
    noise = ["step-00000001-abc", "step-1.json", "other.json"]
    assert paths.checkpoint_steps(noise + names) == sorted(steps)
