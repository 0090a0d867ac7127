"""One issue of a folder of photographs."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["note", "warning", "fault"]


@dataclass(frozen=True)
class QualityIssue:
    """One issue: its check and severity, the photographs, its value, the bound, and a sentence.

    note: good to know; warning: better mended; fault: training would certainly suffer
    """

    check: str
    severity: Severity
    photographs: tuple[str, ...]
    value: float
    bound: float
    sentence: str
