"""Processes of a local Ray that wait for work, with what this imports."""

import sys

import pytest
import ray

from cluster import waiting_process
from cluster.session import session
from dreambooth_ray.config.load import load_config

OWN_PROCESS = {"env_vars": {"OMP_NUM_THREADS": "1"}}


@ray.remote(num_cpus=0)
def has_imported() -> bool:
    """Before its first work."""
    return "dreambooth_ray.models.components" in sys.modules


@pytest.mark.fault
def test_who_takes_a_waiting_process_finds_the_imports_done_and_who_takes_none_does_not() -> None:
    with session(load_config("toy-robot.yaml", []), imports_ahead=True):
        assert not ray.get(has_imported.options(runtime_env=OWN_PROCESS).remote())
        assert ray.get(has_imported.remote())


def test_a_process_started_for_a_task_imports_nothing_ahead() -> None:
    assert not waiting_process.import_ahead("01000000")
    assert not waiting_process.import_ahead("")
