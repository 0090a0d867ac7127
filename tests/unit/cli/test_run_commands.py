"""`submit` refuses options that contradict each other or would do nothing."""

import sys

import pytest

from dreambooth_ray.cli import main
from tests.unit.cluster.test_pod_checks import IMAGE, REMOTE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k8s", "--cluster=team", f"--image={IMAGE}"], "--cluster='team' and --k8s"),
        ([f"--image={IMAGE}", "--cluster=team"], "--image is for pods alone"),
        (["--apply", "--namespace=team"], "--namespace, --apply is for pods alone"),
        (["--k8s"], "--image is not given"),
        (["--k8s", f"--image={IMAGE}", "--namespace=Team"], "--namespace='Team'"),
        (["--k8s", f"--image={IMAGE}", "storage.uri=out"], "storage.uri='out'"),
    ],
)
def test_options_are_refused_in_one_line(
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["dreambooth", "submit", "toy-robot", *REMOTE, *options])
    with pytest.raises(SystemExit) as exit_info:
        main.main()
    printed = capsys.readouterr()
    assert (exit_info.value.code, printed.out) == (2, "")
    assert words in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["watch", "robot"], "--cluster is not given"),
        (["logs", "robot", "--cluster=team", "--k8s"], "--cluster='team' and --k8s"),
        (["stop", "robot", "--cluster=team", "--namespace=team"], "--namespace is for pods alone"),
        (["resume", "robot", "--namespace=team"], "--namespace is for pods alone"),
        (["resume", "robot", "--k8s", "train.steps=9"], "train.steps=9: with --cluster or --k8s"),
        (["ls"], "give --cluster NAME, --k8s or --storage URI"),
        (["ls", "--storage=out", "--k8s"], "--storage='out'"),
        (["ls", "--storage=out", "--namespace=team"], "--namespace is for pods alone"),
    ],
)
def test_verbs_know_one_place(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["dreambooth", *words])
    with pytest.raises(SystemExit) as exit_info:
        main.main()
    printed = capsys.readouterr()
    assert (exit_info.value.code, printed.out) == (2, "")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
