"""Networks of diffusers and transformers: loaded whole, or refused in our own words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dreambooth_ray.errors import ConfigError, DreamBoothError, StorageError

# Of files that a person has to mend; the rest a disk may recover from.
_PERMANENT_ERRNOS = (
    None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EINVAL,
)  # fmt: skip


def load_network_strictly(
    network_class: Any, directory: Path, variant: str | None, subfolder: str = ""
) -> Any:
    """A network of a library's class, in float32, all of whose weights are in its files.

    raises: what the library raises, ValueError where weights are missing or of other shapes
    """
    loaded_network, loading_info = network_class.from_pretrained(
        directory,
        subfolder=subfolder,
        variant=variant,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
    )
    # Libraries fill these with random numbers, or leave them out, and go on.
    for problem_kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if problem_details := sorted(map(str, loading_info.get(problem_kind, ()))):
            raise ValueError(
                f"{problem_kind.replace('_', ' ')}: {problem_details[0]} and "
                f"{len(problem_details) - 1} more"
            )
    return loaded_network


@contextmanager
def explained_loading(folder: Path) -> Iterator[None]:
    """Raise a library's errors inside the block in our own words, naming the folder.

    raises: ConfigError where its files are at fault, StorageError where the disk may recover
    """
    try:
        yield
    except DreamBoothError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        error_text = " ".join(str(error).split())[:300]
        if isinstance(error, MemoryError) or "allocate memory" in error_text:
            raise
        # Libraries raise OSError without a number for files that they miss.
        if isinstance(error, OSError) and error.errno not in _PERMANENT_ERRNOS:
            raise StorageError(f"{folder} can't be read: {error_text}; try again") from error
        raise ConfigError(
            f"{folder} can't be loaded: {error_text}; copy the model directory again"
        ) from error
