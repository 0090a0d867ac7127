"""A person's own class photographs as a set: cropped square once, then like generated ones."""

import hashlib
import io
from pathlib import Path

from dreambooth_ray.data.photographs import crop_square, find_photographs, read_photograph

MAX_PHOTOGRAPHS = 10_000


class ClassImageFolder:
    """The images of a folder in the order of their names.

    raises: DataError naming the file, if one can't be read
    """

    def __init__(self, path: Path, side_px: int) -> None:
        self._paths = find_photographs(path, MAX_PHOTOGRAPHS, key="prior.folder")
        self._side_px = side_px
        digest = hashlib.sha256()
        for file in self._paths:
            read_photograph(file)
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def read_chunk(self, indices: range) -> list[bytes]:
        """PNG files of the images with these indices; fewer at the end."""
        image_files = []
        for file in self._paths[indices.start : indices.stop]:
            data = io.BytesIO()
            crop_square(read_photograph(file), self._side_px).save(data, "PNG")
            image_files.append(data.getvalue())
        return image_files
