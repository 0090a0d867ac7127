from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from dreambooth_ray.cli.main import app
from dreambooth_ray.data.crop_sheet import draw_crops
from dreambooth_ray.data.image_shapes import ShapeRule
from dreambooth_ray.data.subject import read_subject_photographs

RED = (255, 0, 0)


def test_a_sheet_and_the_number_in_each_shape(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("a", (160, 90)), ("b", (90, 160)), ("c", (128, 72))):
        Image.new("RGB", size, (0, 200, 0)).save(photos / f"{name}.png")
    result = CliRunner().invoke(
        app,
        [
            "crops", "toy-robot", f"subject.photos={photos}", "train.buckets=true",
            "train.bucket_step_px=16", "--out", str(tmp_path / "sheet.png"),
        ],
    )  # fmt: skip
    assert result.exit_code == 0
    assert "48x80: 1 photograph\n80x48: 2 photographs\n" in result.output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_the_frame_is_where_the_cut_was(tmp_path: Path) -> None:
    Image.new("RGB", (512, 256), (0, 200, 0)).save(tmp_path / "a.png")
    photographs = read_subject_photographs(tmp_path, "x", ShapeRule.make_square_rule(64))
    (cell,) = draw_crops(photographs, is_squeezed=False)
    # On a thumbnail of 256 by 128 under a line of text, the middle half.
    middle_row = 16 + 64
    reds = [x for x in range(256) if cell.getpixel((x, middle_row))[0] > 150]
    assert reds
    assert 62 <= min(reds) <= 66
    assert 188 <= max(reds) <= 192
