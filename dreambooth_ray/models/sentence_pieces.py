"""SentencePiece's model files, looked at without its library: whether they are whole.

They are a protocol buffer: fields, one after the other, each with its number and how it is stored.
The words come first, the rules by which a text is made ready for them last.
"""

from collections.abc import Iterator
from pathlib import Path

from dreambooth_ray.errors import ConfigError

_PIECE, _NORMALIZER = 1, 3  # fields of ModelProto
_VARINT, _EIGHT_BYTES, _SIZED, _FOUR_BYTES = 0, 1, 2, 5  # how a field is stored


def count_pieces(path: Path) -> int:
    """How many words it has; raises: ConfigError where it was cut off"""
    try:
        fields = list(_read_fields(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read ({error}); copy it again") from error
    if _NORMALIZER not in fields:
        raise ConfigError(f"{path} ends before its rules for texts; copy it again")
    return fields.count(_PIECE)


def _read_fields(data: bytes) -> Iterator[int]:
    """The number of each field; raises: ValueError where the last one is not whole"""
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        kind = key & 7
        if kind == _VARINT:
            _, place = _read_varint(data, place)
        elif kind == _SIZED:
            size, place = _read_varint(data, place)
            place += size
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            place += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"byte {place} begins no field")
        if place > len(data):
            raise ValueError(f"it is cut off after {len(data)} bytes")
        yield key >> 3


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while place < len(data):
        value |= (data[place] & 0x7F) << shift
        shift += 7
        place += 1
        if data[place - 1] < 0x80:
            return value, place
    raise ValueError(f"it is cut off after {len(data)} bytes")
