"""Stopping a run from outside: whoever can write to its storage can ask for it."""

from dreambooth_ray.storage import paths
from dreambooth_ray.storage.store import Store


def ask_to_stop(run: Store) -> None:
    """Ask a run to checkpoint and end; it does so within a few steps."""
    run.write(paths.STOP, b"")


def is_asked_to_stop(run: Store) -> bool:
    """Whether a run has been asked to stop, and not been resumed since."""
    return run.exists(paths.STOP)


def forget_stop(run: Store) -> None:
    """Let a run go on."""
    run.remove(paths.STOP)
