from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from dreambooth_ray.data.quality import measurements
from dreambooth_ray.data.quality.inspection import InspectionReport, inspect_photographs
from dreambooth_ray.data.quality.measured_photo import measure_image
from dreambooth_ray.data.quality.sharpness import Sharpness
from dreambooth_ray.errors import DataError
from dreambooth_ray.evaluation.quality_page import render_quality_page
from dreambooth_ray.toyworld.photoshoot import write_photographs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_photographs(tmp_path / "photos", 7, "robot", 4, size_px=256)
    return tmp_path / "photos"


def checks(report: InspectionReport) -> list[tuple[str, tuple[str, ...]]]:
    return [(f.check, f.photographs) for f in report.issues]


def test_good_photographs_pass_and_what_was_not_looked_at_is_said(folder: Path) -> None:
    report = inspect_photographs(folder, 256)
    assert checks(report) == []
    assert report.worst_severity == "ok"
    assert [line.partition(":")[0] for line in report.skipped] == [
        "other subjects and poses",
        "class noun",
    ]


def test_faults_are_found_each_in_its_photograph(folder: Path) -> None:
    first = Image.open(folder / "00.png")
    first.filter(ImageFilter.GaussianBlur(6)).save(folder / "blurred.png")
    first.resize((100, 100)).save(folder / "small.png")
    Image.eval(Image.open(folder / "01.png"), lambda v: v // 8).save(folder / "dark.png")
    barred = Image.new("RGB", (300, 256))
    barred.paste(Image.open(folder / "02.png"), (22, 0))
    barred.save(folder / "barred.png")
    issues = checks(inspect_photographs(folder, 256))
    assert ("resolution", ("small.png",)) in issues
    assert ("exposure", ("dark.png",)) in issues
    assert ("bars", ("barred.png",)) in issues
    assert ("duplicate", ("00.png", "small.png")) in issues
    assert {p for check, p in issues if check == "blur"} == {("blurred.png",)}


def test_a_speck_in_the_frame_is_too_small(tmp_path: Path) -> None:
    ground = Image.effect_noise((256, 256), 12).convert("RGB")
    for k, side in enumerate((16, 140)):
        image = ground.copy()
        image.paste((220, 30, 30), (90, 60, 90 + side, 60 + side))
        image.save(tmp_path / f"{k}.png")
    sizes = [f for f in inspect_photographs(tmp_path, 256).issues if f.check == "subject size"]
    assert [f.photographs for f in sizes] == [("0.png",)]


def test_a_speck_before_a_soft_ground_of_its_own_colours_is_too_small(tmp_path: Path) -> None:
    ground = Image.radial_gradient("L").point(lambda v: min(2 * v, 510 - 2 * v)).convert("RGB")
    for k, side in enumerate((36, 120)):
        image = ground.copy()
        image.paste(Image.effect_noise((side, side), 90).convert("RGB"), (60, 60))
        image.save(tmp_path / f"{k}.png")
    sizes = [f for f in inspect_photographs(tmp_path, 256).issues if f.check == "subject size"]
    assert [f.photographs for f in sizes] == [("0.png",)]


def test_one_background_for_all_and_too_few(tmp_path: Path) -> None:
    for k in range(2):
        image = Image.new("RGB", (128, 128), (60, 120, 60))
        image.paste((200, 40 + 150 * k, 40), (30 + 20 * k, 30, 100, 90))
        image.save(tmp_path / f"{k}.png")
    assert {"backgrounds", "number"} <= {f.check for f in inspect_photographs(tmp_path, 128).issues}


def test_a_stranger_stands_out_by_its_vector(folder: Path) -> None:
    vectors = torch.eye(4)[[0, 0, 0, 1]] * 0.9 + 0.1
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    report = inspect_photographs(folder, 256, embed=lambda images: vectors)
    assert checks(report) == [("subject", ("03.png",))]
    report_of_alike = inspect_photographs(
        folder, 256, embed=lambda images: torch.eye(4)[[0, 0, 0, 0]]
    )
    assert [f.check for f in report_of_alike.issues] == ["poses"]


def test_the_class_noun_is_compared_with_what_is_seen(folder: Path) -> None:
    noun_shares = [(0.9, "robot"), (0.05, "teapot"), (0.1, "robot"), (0.3, "car")]
    report = inspect_photographs(
        folder, 256, class_noun="robot", noun_share=lambda images: noun_shares
    )
    assert checks(report) == [("class noun", ("01.png",))]
    assert "more like a teapot than a robot" in report.issues[0].sentence


def test_captions_are_read(folder: Path) -> None:
    (folder / "00.txt").write_text("a sks robot on the grass")
    (folder / "01.txt").write_text("  ")
    (folder / "02.txt").write_text("a robot " + "very " * 60)
    issues = inspect_photographs(folder, 256, identifier="sks", class_noun="robot").issues
    rows = [(f.severity, f.photographs, f.sentence[:35]) for f in issues]
    assert rows == [
        ("note", ("03.png",), "1 of 4 photographs have no caption "),
        ("warning", ("01.png",), "The caption of 01.png is empty; wri"),
        ("note", ("02.png",), "The caption of 02.png has 62 words;"),
        ("warning", ("02.png",), "The caption of 02.png does not hold"),
    ]


def test_the_page_escapes_names_and_holds_its_images(folder: Path) -> None:
    (folder / "00.png").rename(folder / "<b>&.png")
    page = render_quality_page(inspect_photographs(folder, 512))
    assert "&lt;b&gt;&amp;.png" in page
    assert "<b>&" not in page
    assert (
        page.count("data:image/jpeg;base64,") == 12
    )  # 4 photographs, what stands out in them, 4 findings: too small
    assert "http" not in page.replace("http-equiv", "")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no photograph"):
        inspect_photographs(tmp_path, 512)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (90, 20, 160)])
def test_an_even_image_has_numbers_all_the_same(colour: tuple[int, int, int]) -> None:
    photo = measure_image("even", Image.new("RGB", (40, 90), colour))
    assert photo.sharpness == Sharpness(0.0, 1.0)
    assert photo.extent == (0.0, 0.0)
    assert photo.bars.facing_bar_width_share == photo.noise == 0
    assert photo.region.source == "frame"
    assert np.isfinite(measurements.measure_rim_colours(photo.image)).all()


def test_what_was_measured_and_where_is_said(folder: Path) -> None:
    first = Image.open(folder / "00.png").convert("RGB")
    first.filter(ImageFilter.GaussianBlur(6)).save(folder / "00.png")
    (blur,) = [f for f in inspect_photographs(folder, 256).issues if f.check == "blur"]
    assert blur.value < blur.bound
    measured = blur.describe_measured_value()
    assert measured.startswith(f"steepness of edges, 1/px: {blur.value:g}, bound 0.21, in")
    assert "% of the frame" in measured


def test_a_mask_says_where_the_subject_is(folder: Path) -> None:
    """Soft in the middle alone: good where the mask has the sharp rim, blurred where the middle."""
    size = (256, 256)
    middle = Image.new("L", size, 0)
    middle.paste(255, (64, 64, 192, 192))
    grain = Image.effect_noise((16, 16), 150).resize(size, Image.Resampling.NEAREST)
    soft = Image.composite(grain.filter(ImageFilter.GaussianBlur(5)), grain, middle)
    soft.convert("RGB").save(folder / "00.png")

    def blurred(mask: Image.Image) -> bool:
        report = inspect_photographs(folder, 256, masks={"00.png": mask})
        return ("blur", ("00.png",)) in checks(report)

    assert blurred(middle.filter(ImageFilter.MinFilter(25)))
    assert not blurred(ImageOps.invert(middle))
    cut_out = soft.convert("RGB")
    cut_out.putalpha(middle.filter(ImageFilter.MinFilter(25)))
    cut_out.save(folder / "00.png")
    issues = inspect_photographs(folder, 256).issues
    assert [f.region for f in issues if f.check == "blur"] == ["in its mask, 17 % of the frame"]
    Image.new("L", size, 0).save(folder / "00.mask.png")
    assert ("mask", ("00.png",)) in checks(inspect_photographs(folder, 256))
    middle.save(folder / "00.mask.png")
    report = inspect_photographs(folder, 256)
    assert report.photos[0].region.source == "mask"
    assert "mask" not in {f.check for f in report.issues}
    assert len(report.photos) == 4
