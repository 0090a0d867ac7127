"""Which memory allocator the processes get that compute."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


def choose_allocator(library: Path) -> dict[str, str]:
    """Environment that keeps freed blocks for the next tensor of their size.

    With jemalloc, which Ray brings, steps of the toy model come about as fast as with glibc that
    is told to keep large blocks, or up to 1.15 times, by processor (benchmarks/results/train.json);
    against glibc as it comes, sampling takes 0.85 of the time. Numbers are the same bit for bit.
    jemalloc's decay stays as it is: told to keep all that is freed, it never joins it either, and
    steps of lora became slower by and by. A machine that lacks the library goes on with glibc, as
    does one where LD_PRELOAD is chosen.
    """
    environment = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**33)}
    if library.is_file() and "LD_PRELOAD" not in os.environ:
        environment["LD_PRELOAD"] = str(library)
    return environment


def _find_ray_jemalloc() -> Path:
    # Found, not imported: this layer has no Ray.
    ray_module_spec = find_spec("ray")
    ray_package_folder = (
        Path(ray_module_spec.origin).parent
        if ray_module_spec and ray_module_spec.origin
        else Path()
    )
    return ray_package_folder / "core" / "libjemalloc.so"


ALLOCATOR = choose_allocator(_find_ray_jemalloc())


# Set where every process of a local Ray has the environment below from its start.
_IS_SET = "DREAMBOOTH_WORKER_ENVIRONMENT"


def worker_environment() -> dict[str, dict[str, str]]:
    """Runtime environment of a Ray actor that computes: one thread, and its allocator.

    Empty where a local Ray was started inside `setting_ray_process_environment`: an actor without a
    runtime environment takes a process that waits already, one with it a new one, half a second
    later.
    """
    return {} if _IS_SET in os.environ else {"env_vars": {**ALLOCATOR, "OMP_NUM_THREADS": "1"}}


@contextmanager
def setting_ray_process_environment() -> Iterator[None]:
    """Inside, a Ray that this process starts gives all its processes the workers' environment."""
    worker_variables = {**ALLOCATOR, "OMP_NUM_THREADS": "1", _IS_SET: "1"}
    previous_values = {
        variable_name: os.environ.get(variable_name) for variable_name in worker_variables
    }
    os.environ.update(worker_variables)
    try:
        yield
    finally:
        for variable_name, previous_value in previous_values.items():
            if previous_value is None:
                os.environ.pop(variable_name, None)
            else:
                os.environ[variable_name] = previous_value
