import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreambooth_ray.captioning.folder_captioning import (
    CaptioningOptions,
    CaptioningResult,
    caption_folder,
    insert_required_words,
)
from dreambooth_ray.captioning.vision_client import VisionClient
from dreambooth_ray.data.caption_words import caption_has_word
from dreambooth_ray.data.generated_caption_records import ANSWERS, read_generated_caption_records
from dreambooth_ray.data.image_shapes import ShapeRule
from dreambooth_ray.data.photographs import find_photographs
from dreambooth_ray.data.quality.caption_checks import check_captions
from dreambooth_ray.data.subject import read_subject_photographs
from dreambooth_ray.errors import ConfigError, DataError
from tests.vision_server import Answer, VisionServer, error

ORDER = CaptioningOptions(class_noun="robot", identifier="sks")
CAPTION = "a sks robot in the snow"


@pytest.fixture
def client(server: VisionServer) -> Iterator[VisionClient]:
    vision_client = VisionClient(server.api, model="eye", wait=lambda _: None)
    yield vision_client
    vision_client.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.jpg", "c.png")):
        Image.new("RGB", (64, 48), (80 * number, 40, 200)).save(tmp_path / name)
    return tmp_path


def read_files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.[tc][xa][tp]*"))}


def test_captions_are_written_and_read_by_training(
    folder: Path, server: VisionServer, client: VisionClient
) -> None:
    progress: list[tuple[int, int]] = []
    result = caption_folder(folder, client, ORDER, lambda *numbers: progress.append(numbers))
    assert result == CaptioningResult(dict.fromkeys(("a.png", "b.jpg", "c.png"), CAPTION))
    assert progress == [(1, 3), (2, 3), (3, 3)]
    photographs = read_subject_photographs(folder, "x", ShapeRule.make_square_rule(16))
    assert [photograph.caption for photograph in photographs] == [CAPTION] * 3
    assert check_captions(find_photographs(folder), "sks", "robot") == []
    assert 'Call the robot just "a robot"' in server.prompts[0]
    assert [path.name for path in folder.glob("*.partial")] == []


def test_a_photograph_is_sent_small_upright_and_without_what_a_camera_wrote(
    folder: Path, server: VisionServer, client: VisionClient
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera of mine"  # turned to the right; maker
    exif.get_ifd(0x8825)[2] = (51.0, 30.0, 0.0)  # latitude
    photograph = Image.effect_noise((1200, 400), 60).convert("RGB")
    photograph.save(folder / "b.jpg", exif=exif, comment=b"home", xmp=b"<x>mine</x>", dpi=(9, 9))
    caption_folder(folder, client, CaptioningOptions(side_px=300))
    sent = server.images[1]
    assert sent.size == (100, 300)
    assert (dict(sent.getexif()), sent.info.keys() & {"exif", "comment", "xmp", "icc_profile"}) == (
        {}, set(),
    )  # fmt: skip
    assert server.images[0].size == (64, 48)


def test_what_has_a_caption_keeps_it_and_only_the_rest_is_asked_for(
    folder: Path, server: VisionServer, client: VisionClient
) -> None:
    (folder / "a.caption").write_text("mine")
    (folder / "metadata.jsonl").write_text('{"file_name": "b.jpg", "text": "too"}\n')
    result = caption_folder(folder, client, ORDER)
    assert (result.skipped, list(result.written)) == (["a.png", "b.jpg"], ["c.png"])
    assert read_files(folder) == {"a.caption": "mine", "c.txt": f"{CAPTION}\n"}
    assert len(server.prompts) == 1


def test_overwriting_keeps_the_name_of_the_file(
    folder: Path, server: VisionServer, client: VisionClient
) -> None:
    (folder / "a.caption").write_bytes(b"\0")
    caption_folder(folder, client, CaptioningOptions(prompt="what?", overwrite=True))
    assert set(server.prompts) == {"what?"}
    assert set(read_files(folder)) == {"a.caption", "b.txt", "c.txt"}
    assert read_files(folder)["a.caption"] == "a robot in the snow\n"


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (
            {"metadata.jsonl": '{"file_name": "a.png", "text": "x"}'},
            "in metadata.jsonl, which",
        ),
        ({"a.txt": "x", "a.caption": "x"}, "two captions, a.caption and a.txt; remove one"),
    ],
)
def test_what_can_not_be_overwritten_is_refused_before_anything_is_asked(
    files: dict[str, str], match: str, folder: Path, server: VisionServer, client: VisionClient
) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(DataError, match=match):
        caption_folder(folder, client, CaptioningOptions(overwrite=True))
    assert server.requests == []


def test_what_failed_is_asked_for_by_the_next_call_alone(
    folder: Path, server: VisionServer, client: VisionClient
) -> None:
    server.answers = [Answer("a robot"), error(400, "too dark"), Answer("a robot at night")]
    result = caption_folder(folder, client, ORDER)
    assert result.failures == {"b.jpg": "400: too dark"}
    assert read_files(folder) == {"a.txt": "a sks robot\n", "c.txt": "a sks robot at night\n"}
    result = caption_folder(folder, client, ORDER)
    assert (list(result.written), result.skipped) == (["b.jpg"], ["a.png", "c.png"])
    assert len(server.prompts) == 4


def test_a_refused_key_ends_it_and_keeps_what_is_there(
    folder: Path, server: VisionServer, client: VisionClient
) -> None:
    server.answers = [Answer("a robot"), error(401, "expired")]
    with pytest.raises(ConfigError, match="401: expired"):
        caption_folder(folder, client, ORDER)
    assert read_files(folder) == {"a.txt": "a sks robot\n"}
    assert len(server.prompts) == 2


def test_several_are_asked_for_at_once(
    folder: Path, server: VisionServer, client: VisionClient
) -> None:
    server.on_question = threading.Barrier(3, timeout=10).wait
    result = caption_folder(folder, client, CaptioningOptions(parallel=3))
    assert len(result.written) == 3
    assert set(read_generated_caption_records(folder)) == set(result.written)


def test_photographs_of_one_stem_get_a_caption_each(folder: Path, client: VisionClient) -> None:
    Image.new("RGB", (64, 48)).save(folder / "a.webp")
    assert len(caption_folder(folder, client, ORDER).written) == 4
    assert set(read_files(folder)) == {"a.png.txt", "a.webp.txt", "b.txt", "c.txt"}
    assert caption_folder(folder, client, ORDER).written == {}


def test_a_folder_remembers_who_wrote_its_captions(folder: Path, client: VisionClient) -> None:
    caption_folder(folder, client, ORDER)
    answer = read_generated_caption_records(folder)["a.png"]
    assert answer.photograph_sha256 == hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    assert answer.caption_sha256 == hashlib.sha256(CAPTION.encode()).hexdigest()
    assert (answer.api, answer.model, answer.side_px) == (client.api, "eye", 1024)
    assert answer.prompt == ORDER.filled_prompt
    (folder / ANSWERS).write_text("[]")
    with pytest.raises(DataError, match=r"is not what `dreambooth caption` writes.*remove it"):
        caption_folder(folder, client, ORDER)


def test_the_doctor_tells_captions_of_photographs_that_were_exchanged(
    folder: Path, client: VisionClient
) -> None:
    caption_folder(folder, client, ORDER)
    Image.new("RGB", (64, 48), (9, 9, 9)).save(folder / "c.png")
    (issue,) = check_captions(find_photographs(folder), "sks", "robot")
    assert (issue.severity, issue.photographs) == ("warning", ("c.png",))
    assert "was written for another photograph" in issue.sentence
    (folder / "c.txt").write_text("a sks robot, as I see it")
    assert check_captions(find_photographs(folder), "sks", "robot") == []


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a robot in snow", "a sks robot in snow"),
        ("two Robots", "a robot, two Robots".replace("a robot", "a sks robot")),
        ("a sks robot", "a sks robot"),
        ("snow", "a sks robot, snow"),
        ("sks in snow", "a robot, sks in snow"),
    ],
)
def test_words_are_put_where_they_lack(caption: str, expected: str) -> None:
    assert insert_required_words(caption, ORDER) == expected
    assert insert_required_words(caption, CaptioningOptions()) == caption


@given(caption=st.text("ab sk.,robt", max_size=30), noun=st.sampled_from(["", "robot", "rc car"]))
def test_every_caption_holds_both_words(caption: str, noun: str) -> None:
    text = insert_required_words(caption, CaptioningOptions(class_noun=noun, identifier="sks"))
    assert caption_has_word(text, "sks")
    assert not noun or caption_has_word(text, noun)
