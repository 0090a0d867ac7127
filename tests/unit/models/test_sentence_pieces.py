"""SentencePiece's files: whole, or cut off at any byte."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.sentence_pieces import count_pieces

# Fields of ModelProto: two pieces, each a message of its own, the trainer's settings and the rules.
PIECES = [b"\x0a\x05\x0a\x03</s", b"\x0a\x85\x01" + b"\x0a\x82\x01" + b"x" * 130]
REST = b"\x12\x02\x18\x01" + b"\x1a\x04\x0a\x02nf"


def test_pieces_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(b"".join(PIECES) + REST)
    assert count_pieces(path) == len(PIECES)


@given(size=st.integers(0, len(b"".join(PIECES) + REST) - 1))
def test_a_file_that_was_cut_off_is_refused(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "spiece.model"
    path.write_bytes((b"".join(PIECES) + REST)[:size])
    with pytest.raises(ConfigError, match=r"spiece\.model"):
        count_pieces(path)


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(b"\x07 no fields")
    with pytest.raises(ConfigError, match="begins no field"):
        count_pieces(path)
