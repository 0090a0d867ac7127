"""A person's own class photographs as a set: cropped once, then like generated ones."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from dreambooth_ray.data.image_shapes import ImageShape, ShapeRule
from dreambooth_ray.data.photographs import find_photographs, read_photograph

MAX_PHOTOGRAPHS = 10_000


class ClassImageFolder:
    """The images of a folder in the order of their names.

    raises: DataError naming the file, if one can't be read
    """

    def __init__(self, path: Path) -> None:
        self._paths = find_photographs(path, MAX_PHOTOGRAPHS, key="prior.folder")
        folder_digest = hashlib.sha256()
        for image_path in self._paths:
            read_photograph(image_path)
            folder_digest.update(hashlib.sha256(image_path.read_bytes()).digest())
        self.digest = folder_digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def read_chunk(self, positions: Sequence[int], shape: ImageShape) -> list[bytes]:
        """PNG files of the middle of the images at these positions; fewer at the end."""
        crop_rule, png_files = ShapeRule.make_square_rule(shape.width), []
        for image_position in positions:
            if image_position < len(self._paths):
                png_buffer = io.BytesIO()
                crop_rule.cut(read_photograph(self._paths[image_position]), shape).image.save(
                    png_buffer, "PNG"
                )
                png_files.append(png_buffer.getvalue())
        return png_files
