import pytest

from tests.shares import is_in_share, parse_share

NAMES = [f"tests/test_{module}.py::test_{k}" for module in "abc" for k in range(20)]


def test_every_test_falls_into_one_share() -> None:
    shares = [[n for n in NAMES if is_in_share(n, parse_share(f"{k}/5"))] for k in range(5)]
    assert sorted(name for share in shares for name in share) == sorted(NAMES)
    assert all(shares)


def test_a_number_of_commits_goes_round() -> None:
    assert [parse_share(f"{k}/12") for k in (0, 11, 12, 337)] == [
        (0, 12), (11, 12), (0, 12), (1, 12),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["1", "1/0", "-1/3", "a/3", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--share"):
        parse_share(text)
