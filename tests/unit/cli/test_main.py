"""The command line's manners: exit codes, one clear line, nothing half-written."""

import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_ray.cli import main


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):  # type: ignore[no-untyped-def]
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["dreambooth", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            main.main()
        printed = capsys.readouterr()
        return int(exit_info.value.code or 0), printed.out, printed.err

    return run


def noise_image(path: Path, side: int = 64) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_empty(folder: Path) -> None:
    pass


def make_texts(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")


def make_truncated(folder: Path) -> None:
    noise_image(folder / "good.jpg")
    noise_image(folder / "bad.jpg")
    (folder / "bad.jpg").write_bytes((folder / "bad.jpg").read_bytes()[:900])


def make_dot(folder: Path) -> None:
    noise_image(folder / "dot.png", side=1)


def make_huge(folder: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")


def test_words_are_not_ranked_by_a_language_model(call) -> None:  # type: ignore[no-untyped-def]
    code, _, said = call("identifier", "toyworld-flow", "--class-noun", "robot")
    assert code == 2
    assert "MODEL='toyworld-flow' is a Z-Image: words are ranked by CLIP's text encoder" in said


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_empty, "subject.photos"),
        (make_texts, "subject.photos"),
        (make_truncated, "bad.jpg"),
        (make_dot, "dot.png"),
        (make_huge, "huge.png"),
    ],
)
def test_bad_photographs(call, tmp_path: Path, make, words: str) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "photos"
    folder.mkdir()
    make(folder)
    assert_refused(call("train", "toy-robot.yaml"), words, tmp_path)


def assert_refused(result: tuple[int, str, str], words: str, folder: Path) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=0", "train.steps=0"),
        ("train.stesp=5", "did you mean train.steps"),
        ("subject.class_noun=", "subject.class_noun"),
        ("train.resolution=50", "train.resolution=50"),
        ("model.uri=nowhere", "model.uri='nowhere'"),
        ("model.uri=broken", "has no unet/"),
        ("storage.uri=photos/00.png/out", "storage"),
        ("storage.uri=nosuch://bucket", "storage"),
        ("cluster.address=nonsense", "cluster.address='nonsense'"),
    ],
)
def test_bad_settings(
    call, tmp_path: Path, photos: Path, toy_model: Path, override: str, words: str
) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(toy_model, tmp_path / "broken", ignore=shutil.ignore_patterns("unet"))
    result = call("train", "toy-robot.yaml", f"storage.uri={tmp_path / 'out'}", override)
    assert_refused(result, words, tmp_path)


def test_sampling_that_can_not_be_is_refused_before_anything_is_loaded(
    call, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    result = call("generate", "nowhere", "--eta", "0.5", "--solver", "euler")
    assert_refused(result, "eta=0.5: is for solvers ddim, tcd, not euler", tmp_path)


def test_an_unreachable_cluster(call, tmp_path: Path, photos: Path) -> None:  # type: ignore[no-untyped-def]
    with socket.socket() as bound_socket:
        bound_socket.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound_socket.getsockname()[1]}"
        result = call(
            "train", "toy-robot.yaml", f"subject.photos={photos}", f"cluster.address={address}"
        )
    assert_refused(result, f"cluster.address='{address}' can't be reached", tmp_path)


def test_what_is_no_run_can_not_be_resumed(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert_refused(call("resume", str(tmp_path)), "is not a run", tmp_path)


def test_debug_shows_the_traceback(call) -> None:  # type: ignore[no-untyped-def]
    code, _, err = call("train", "toy-robot.yaml", "train.steps=0", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_an_unknown_verb_is_the_callers_mistake(call) -> None:  # type: ignore[no-untyped-def]
    assert call("tarin")[0] == 2


def test_a_defect_of_ours_is_exit_code_one(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("dreambooth_ray.toyworld.photoshoot.write_photographs", broken)
    code, _, err = call("toyworld", "render", "--out", "x")
    assert code == 1
    assert err == "error: RuntimeError: a defect (--debug shows where)\n"


def test_render_writes_photographs_and_says_what_they_show(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("toyworld", "render", "--subject-seed", "7", "--count", "2", "--out", "p")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["00.png", "01.png"]
    assert len(out.split()) == 3


def test_help_needs_no_heavy_module(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, _ = call("--help")
    assert code == 0
    assert "generate" in out
