"""A part of the tests at a time, for runs that have no time for all."""

import re
import zlib


def parse_share(text: str) -> tuple[int, int]:
    """ "30/12" as (6, 12): the share, counted from 0, and how many there are.

    Any number may stand first, such as one of commits: it goes round.
    raises: ValueError
    """
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"--share={text!r}: give K/N, such as 0/12")
    number, num_shares = int(match.group(1)), int(match.group(2))
    return number % num_shares, num_shares


def is_in_share(name: str, share: tuple[int, int]) -> bool:
    """Whether a test falls into a share; every one falls into one, whatever others there are."""
    number, num_shares = share
    return zlib.crc32(name.encode()) % num_shares == number
