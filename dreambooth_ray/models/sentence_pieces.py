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
        field_numbers = list(_read_fields(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read ({error}); copy it again") from error
    if _NORMALIZER not in field_numbers:
        raise ConfigError(f"{path} ends before its rules for texts; copy it again")
    return field_numbers.count(_PIECE)


def _read_fields(data: bytes) -> Iterator[int]:
    """The number of each field; raises: ValueError where the last one is not whole"""
    byte_offset = 0
    while byte_offset < len(data):
        field_tag, byte_offset = _read_varint(data, byte_offset)
        wire_type = field_tag & 7
        if wire_type == _VARINT:
            _, byte_offset = _read_varint(data, byte_offset)
        elif wire_type == _SIZED:
            field_size, byte_offset = _read_varint(data, byte_offset)
            byte_offset += field_size
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            byte_offset += 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"byte {byte_offset} begins no field")
        if byte_offset > len(data):
            raise ValueError(f"it is cut off after {len(data)} bytes")
        yield field_tag >> 3


def _read_varint(data: bytes, byte_offset: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    number = bit_shift = 0
    while byte_offset < len(data):
        number |= (data[byte_offset] & 0x7F) << bit_shift
        bit_shift += 7
        byte_offset += 1
        if data[byte_offset - 1] < 0x80:
            return number, byte_offset
    raise ValueError(f"it is cut off after {len(data)} bytes")
