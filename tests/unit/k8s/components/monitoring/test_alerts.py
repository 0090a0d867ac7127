"""The reasons that an alert matches are those that the endpoint gives."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[5]
ALERTS = ROOT / "k8s/components/monitoring/alerts.yaml"
RUNBOOK = ROOT / "k8s/RUNBOOK.md"


def list_unavailable_codes(text: str) -> Iterator[str]:
    """The codes of all errors of 503 that a module makes."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        values = [arg.value if isinstance(arg, ast.Constant) else None for arg in node.args]
        if node.func.id == "APIError" and values[0] == 503 and isinstance(values[1], str):
            yield values[1]
        if node.func.id == "busy_error":
            assert not [keyword for keyword in node.keywords if keyword.arg == "code"]
            yield str(values[2]) if len(values) > 2 else "overloaded"


def read_alert_reasons() -> set[str]:
    groups = yaml.safe_load(ALERTS.read_text())["spec"]["groups"]
    rules = {rule.get("alert"): rule for group in groups for rule in group["rules"]}
    match = re.search('reason=~"([^"]+)"', rules["DreamboothEndpointRefuses"]["expr"])
    assert match
    return set(match[1].split("|"))


def test_every_refusal_of_503_is_told_and_no_other() -> None:
    """The alert of errors leaves 503 out, as this one tells them."""
    paths = sorted((ROOT / "serve").rglob("*.py"))
    codes = {code for path in paths for code in list_unavailable_codes(path.read_text())}
    assert len(codes) > 5
    assert read_alert_reasons() == codes


def test_the_runbook_has_every_reason() -> None:
    section = (
        RUNBOOK.read_text().partition("## DreamboothEndpointRefuses\n")[2].partition("\n## ")[0]
    )
    heads = re.findall("^- (.+?):", section, re.MULTILINE)
    assert {
        code for head in heads for code in re.findall("`([^`]+)`", head)
    } == read_alert_reasons()


def test_codes_are_found_in_calls() -> None:
    text = 'busy_error("x", 1.0)\nbusy_error("x", 1.0, "away")\nAPIError(503, "late", "x")\n'
    assert set(list_unavailable_codes(text + 'APIError(400, "short", "x")')) == {
        "overloaded", "away", "late",
    }  # fmt: skip
