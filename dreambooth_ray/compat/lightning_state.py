"""Of Lightning: counters inside its checkpoints, documented nowhere. Nothing is imported.

Private: the progress of the training loop under "loops".
"""

from typing import Any


def set_num_batches(checkpoint: dict[str, Any], num_batches: int) -> None:
    """Let the training loop go on as if `num_batches` batches had been taken; in place."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), num_batches))
