"""What a process of a local Ray imports while it waits for work: what every model needs.

Ray starts it, and imports this module in it, before the process that starts a run has imported what
that needs itself. A process that Ray starts later is started for a task, and imports what that asks
for.
"""

import os
from contextlib import suppress

from dreambooth_ray.imports import pause_garbage_collection

# As Ray writes the job of a process that it has started for nobody yet: all bits set.
_NO_JOB = {"f"}


def import_ahead(job_id: str) -> bool:
    """Whether this process waits, and has imported torch and the networks meanwhile.

    job_id: as Ray has put it into the environment of the process
    """
    if set(job_id) != _NO_JOB:
        return False
    # What fails here fails once more where it is needed, and is said there.
    with suppress(Exception), pause_garbage_collection():
        import dreambooth_ray.models.components  # noqa: F401, PLC0415
    return True


import_ahead(os.environ.get("RAY_JOB_ID", ""))
