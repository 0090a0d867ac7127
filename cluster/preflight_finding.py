"""What a preflight finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PreflightFinding:
    """One thing that is wrong (fatal) or doubtful, with the key to change; a note is neither."""

    key: str
    text: str
    fatal: bool = True
    is_note: bool = False
