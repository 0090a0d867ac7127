"""What the command line does where a part of the package, or an extra of it, is not installed."""

import subprocess
import sys

# Runs a verb in a process that can't find the packages of the first argument.
SCRIPT = """
import sys
from importlib.abc import MetaPathFinder

hidden = sys.argv.pop(1).split(",")


class Refusal(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refusal())
from dreambooth_ray.cli.main import main

main()
"""


def run_without(packages: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, packages, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def assert_one_line(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


def test_help_needs_no_benchmarks() -> None:
    for arguments in (["--help"], ["train", "--help"]):
        result = run_without("benchmarks", *arguments)
        assert result.returncode == 0, result.stderr
        assert "Usage" in result.stdout


def test_bench_says_where_benchmarks_come_from() -> None:
    for arguments in (["bench"], ["bench", "--help"], ["bench", "sample"]):
        assert_one_line(
            run_without("benchmarks", *arguments), "pip install 'dreambooth-ray[bench]'"
        )


def test_a_missing_extra_is_named() -> None:
    plan = ["bench", "plan", "--gpus", "4", "--subjects", "2", "--step-s", "1"]
    assert_one_line(run_without("simpy", *plan), "simpy is not installed: pip install 'dreambooth")
