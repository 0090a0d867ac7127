"""Programs that a benchmark times from their command to their end."""

import os
import subprocess

from dreambooth_ray.errors import DreamBoothError


def run_command(command: list[str]) -> None:
    """One thread each, as in theme `train`.

    raises: DreamBoothError with the command's last words
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    completed_process = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment
    )
    if completed_process.returncode:
        raise DreamBoothError(
            f"{command[0]} ended with {completed_process.returncode}: "
            f"{completed_process.stderr[-2000:]}"
        )
