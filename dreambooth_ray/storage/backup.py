"""A copy of a storage in another one, brought up to date: a backup, or a backup's way back."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from dreambooth_ray.storage.file_listing import ListedFile, list_files
from dreambooth_ray.storage.scratch import scratch_folder
from dreambooth_ray.storage.store import Store

_COPIERS = 8


@dataclass(frozen=True)
class CopySummary:
    """num_gone: files that somebody removed while they were to be copied"""

    num_copied: int
    num_bytes: int
    num_current: int
    num_gone: int


def copy_storage(source: Store, target: Store) -> CopySummary:
    """Copy each file that the target lacks, or has of another size or from before its last change.

    Of what runs write meanwhile a file may be in the copy and its checkpoint's other files not: a
    run passes over such a checkpoint as it does over any that is not whole. Nothing is removed from
    the target. raises: StorageError
    """
    target_files = {file.name: file for file in list_files(target)}
    source_files = list_files(source)
    outdated_files = [
        file for file in source_files if not _is_copy_newer(file, target_files.get(file.name))
    ]
    if outdated_files:
        target.check_writable()
    with (
        scratch_folder("backup") as folder,
        ThreadPoolExecutor(_COPIERS) as pool,
    ):

        def copy_file(number: int, file: ListedFile) -> int | None:
            """Its bytes; None if it has gone."""
            local_path = folder / str(number)
            with suppress(FileNotFoundError):
                source.download(file.name, local_path)
                size_bytes = target.upload(local_path, file.name).size_bytes
                local_path.unlink()
                return size_bytes
            return None

        sizes_or_none = list(pool.map(copy_file, range(len(outdated_files)), outdated_files))
    copied_sizes = [size_bytes for size_bytes in sizes_or_none if size_bytes is not None]
    num_files_gone = len(outdated_files) - len(copied_sizes)
    return CopySummary(
        len(copied_sizes),
        sum(copied_sizes),
        len(source_files) - len(outdated_files),
        num_files_gone,
    )


def _is_copy_newer(file: ListedFile, copy: ListedFile | None) -> bool:
    return (
        copy is not None
        and copy.size_bytes == file.size_bytes
        and copy.modified_s > file.modified_s
    )
