"""What a verb writes is there whole, or not at all."""

import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreambooth_ray.data.photographs import is_folder_photograph_or_mask
from dreambooth_ray.errors import StorageError


def check_path_is_new(out: Path) -> None:
    """raises: StorageError where there is something already"""
    if out.exists():
        raise StorageError(f"--out={str(out)!r} is there already; choose another or remove it")


@contextmanager
def explained_writing(out: Path, option: str = "--out") -> Iterator[None]:
    """Raise an OSError inside the block as a StorageError that names `out`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{option}={str(out)!r} can't be written: {error}") from error


def check_file_is_writable(
    out: Path, option: str = "--out", photo_folders: Iterable[str | Path] = ()
) -> None:
    """Look whether a file can be written, in a folder that is made, before the work for it begins.

    photo_folders: of people's photographs, none of which is to be written over, or joined
    raises: StorageError
    """
    for photo_folder in photo_folders:
        if is_folder_photograph_or_mask(photo_folder, out):
            raise StorageError(
                f"{option}={str(out)!r} would be taken for a photograph of {str(photo_folder)!r}; "
                "give a file in another folder"
            )
    with explained_writing(out, option):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError("it is a folder; give a file")


@contextmanager
def new_path(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to, which takes its place when the block ends well.

    raises: StorageError where `out` is there already, or can't be written
    """
    check_path_is_new(out)
    partial_out = out.with_name(f"{out.stem}.{uuid.uuid4().hex}.partial{out.suffix}")
    with explained_writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial_out
        with explained_writing(out):
            partial_out.rename(out)
    finally:
        with suppress(OSError):  # what failed before is what is told
            if partial_out.is_dir():
                shutil.rmtree(partial_out)
            else:
                partial_out.unlink(missing_ok=True)
