"""What a person is told when a training runs out of memory after all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dreambooth_ray.config.schema import Config
from dreambooth_ray.errors import CapacityError
from dreambooth_ray.memory.device_memory import usable_bytes
from dreambooth_ray.memory.memory_advice import describe_fitting_settings
from dreambooth_ray.memory.training_memory import estimate_training_footprint

# By so much estimates may be too low: what was predicted to fit and did not has to save more.
_ESTIMATE_ERROR = 0.15


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


@contextmanager
def explain_out_of_memory(config: Config, directory: Path) -> Iterator[None]:
    """Around a training: an error that memory ran out becomes one that says what would fit.

    raises: CapacityError, which is not tried again
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        error_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CapacityError(
            f"a training worker ran out of memory ({error_line[:200]}); "
            f"{_advise_fitting_settings(config, directory)}"
        ) from error


def _advise_fitting_settings(config: Config, directory: Path) -> str:
    needed_bytes = estimate_training_footprint(config, directory).total_bytes
    limit_bytes = int((1 - _ESTIMATE_ERROR) * needed_bytes)
    if config.cluster.gpus and torch.cuda.is_available():
        gpu_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        limit_bytes = min(limit_bytes, usable_bytes(gpu_bytes, is_gpu=True))
    predicted_size_text = f"{needed_bytes / 2**30:.1f} GiB were predicted"
    return f"{predicted_size_text}; {describe_fitting_settings(config, directory, limit_bytes)}"
