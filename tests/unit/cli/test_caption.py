"""`dreambooth caption` as a person sees it: what is printed, and how it ends."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_ray.captioning import vision_client
from dreambooth_ray.cli import main
from tests.vision_server import Answer, VisionServer, error

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[VisionServer]:
    monkeypatch.setattr(vision_client, "_FIRST_WAIT_S", 0.0)
    vision_server = VisionServer()
    yield vision_server
    vision_server.close()


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """Runs the verb on a folder of two photographs; its exit code and what it says."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dreambooth", "caption", str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as exit_info:
            main.main()
        printed = capsys.readouterr()
        return int(exit_info.value.code or 0), printed.out, printed.err

    return run


def test_captions_are_printed_and_those_that_were_there_counted(
    call: Call, server: VisionServer
) -> None:
    code, out, _ = call("--api", server.api, "--class-noun", "robot")
    assert (code, out) == (
        0, "a.png: a sks robot in the snow\nb.png: a sks robot in the snow\n",
    )  # fmt: skip
    code, out, _ = call("--api", server.api, "--class-noun", "robot")
    assert (code, out) == (0, "2 photographs had a caption, which stays\n")
    assert server.requests.count("POST /v1/chat/completions") == 2


def test_the_key_is_read_from_the_environment_alone(
    call: Call, server: VisionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "word-of-mine"
    code, _, said = call("--api", server.api)
    assert code == 2
    assert "refuses the key (401: Incorrect API key provided); put one into the variable" in said
    monkeypatch.setenv("MINE", "word-of-mine\n")
    code, out, said = call("--api", server.api, "--key-env", "MINE")
    assert (code, "word-of-mine" in out + said) == (0, False)


def test_a_part_that_failed_is_work_that_failed_in_one_line(
    call: Call, server: VisionServer
) -> None:
    server.answers = [error(400, "too dark"), Answer("a robot")]
    code, out, said = call("--api", server.api, "--model", "eye")
    assert (code, out) == (1, "b.png: a robot\n")
    last = said.splitlines()[-1]
    assert last == (
        "error: 1 of 2 photographs got no caption: a.png: 400: too dark. Run it again to ask for "
        "these alone"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--api", "nowhere"], "--api='nowhere' is no http or https URL"),
        (["--api", "http://127.0.0.1:9/v1", "--model", "x"], "nothing answers there"),
    ],
)
def test_a_mistake_of_the_callers_ends_with_2(arguments: list[str], words: str, call: Call) -> None:
    code, out, said = call(*arguments)
    assert (code, out) == (2, "")
    assert words in said.splitlines()[-1]


def test_a_key_that_would_be_seen_on_the_way_is_warned_of(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMBOOTH_CAPTION_KEY", "mine")
    _, _, said = call("--api", "http://0.0.0.0:9/v1", "--model", "x")
    assert "warning: --api='http://0.0.0.0:9/v1' is not https: the key goes there" in said
