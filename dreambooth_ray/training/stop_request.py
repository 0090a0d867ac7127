"""Stopping a run from outside: whoever can write to its storage can ask for it."""

from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store


def request_stop(run: Store) -> None:
    """Ask a run to checkpoint and end; it does so within a few steps."""
    run.write(paths.STOP, b"")


def is_stop_requested(run: Store) -> bool:
    """Whether a run has been asked to stop, and not been resumed since."""
    return run.exists(paths.STOP)


def clear_stop_request(run: Store) -> None:
    """Let a run go on."""
    run.remove_file(paths.STOP)
