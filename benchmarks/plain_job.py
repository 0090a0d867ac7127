"""A whole job of the plain loop, as a program of its own: what diffusers' example does, from the
command to the saved model.

    python -m benchmarks.plain_job CONFIG OUT

CONFIG: a resolved configuration as YAML; OUT: the folder the model or adapter is saved to.
"""

import sys
from pathlib import Path

from accelerate.utils import set_seed

from benchmarks.plain_loop import PlainLoop
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.models.model_directory import model_directory


def main(config_file: str, out: str) -> None:
    """Train to the last step and save."""
    config = parse_config(Path(config_file).read_text(), config_file, [])
    if config.seed is not None:
        set_seed(config.seed)
    plain_loop = PlainLoop(config, str(model_directory(config.model.uri)))
    plain_loop.run_steps(config.train.steps)
    plain_loop.save(Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
