"""One issue of a folder of photographs."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["note", "warning", "fault"]


@dataclass(frozen=True)
class QualityIssue:
    """One issue: its check and severity, the photographs, its value, the bound, and a sentence.

    note: good to know; warning: better mended; fault: training would certainly suffer
    measure: what the value is, with its unit; "" where the check's name says it
    region: where it was measured, "in what stands out, 12 % of the frame"; "" for what is no image
    """

    check: str
    severity: Severity
    photographs: tuple[str, ...]
    value: float
    bound: float
    sentence: str
    measure: str = ""
    region: str = ""

    def describe_measured_value(self) -> str:
        """For people: what was measured, its value and bound, and where."""
        measurement_text = f"{self.measure or self.check}: {self.value:g}, bound {self.bound:g}"
        return f"{measurement_text}, {self.region}" if self.region else measurement_text
