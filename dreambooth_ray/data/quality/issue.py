"""What an examination of photographs says."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["note", "warning", "fault"]


@dataclass(frozen=True)
class QualityIssue:
    """One thing found: which check, how grave, where, its number against its bound, in words.

    note: worth knowing; warning: better mended; fault: training would suffer for certain
    """

    check: str
    severity: Severity
    photographs: tuple[str, ...]
    value: float
    bound: float
    sentence: str
