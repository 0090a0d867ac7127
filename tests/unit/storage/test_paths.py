from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.storage import paths

PAIRS = st.sets(st.tuples(st.integers(0, 99_999_999), st.integers(0, 999_999)), max_size=20)


@given(PAIRS, PAIRS)
def test_names_of_checkpoints_and_takeovers_give_their_numbers_back_in_order(
    checkpoints: set[tuple[int, int]], takeovers: set[tuple[int, int]]
) -> None:
    names = [f"{paths.checkpoint(*pair)}.json" for pair in checkpoints]
    names += [paths.takeover_file(lease, step) for step, lease in takeovers]
    names = [name.removeprefix(f"{paths.CHECKPOINTS}/") for name in names]
    noise = ["step-00000001-abc", "step-00000001-000002-abc", "step-1.json", "other.json"]
    assert paths.parse_checkpoint_names(noise + names) == sorted(checkpoints)
    expected = tuple(sorted((lease, step) for step, lease in takeovers))
    assert paths.parse_takeover_names(noise + names) == expected
