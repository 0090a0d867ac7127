import io
from dataclasses import replace
from pathlib import Path

from PIL import Image

from dreambooth_ray.priors.own_class_photographs import ClassImageFolder
from dreambooth_ray.priors.prior_spec import PriorSpec

SPEC = PriorSpec("hash", ("a dog",), None, 64, 0, 2, folder_digest="ff")


def test_each_photograph_is_cut_to_one_shape(tmp_path: Path) -> None:
    for number in range(7):
        Image.new("RGB", (100, 90), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    folder = ClassImageFolder(tmp_path)
    spec = replace(SPEC, shapes=((48, 80), (80, 48)))
    seen = []
    for chunk in range(4):
        shape = spec.chunk_shape(chunk)
        for data in folder.read_chunk(spec.list_chunk_image_positions(chunk), shape):
            image = Image.open(io.BytesIO(data))
            assert image.size == shape
            seen.append(round(image.getpixel((0, 0))[0] / 30))
    assert seen == [0, 2, 1, 3, 4, 6, 5]
    assert len(folder.read_chunk(SPEC.list_chunk_image_positions(3), SPEC.chunk_shape(3))) == 1
