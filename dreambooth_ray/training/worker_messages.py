"""Words of workers for the person at the command line, through the run's folder."""

import json
import time
import uuid

from dreambooth_ray.storage.store import Store

NOTICES = "notices"


def post(run: Store, text: str) -> None:
    """Leave a line for whoever started the run."""
    name = f"{NOTICES}/{time.time_ns():020d}-{uuid.uuid4().hex[:6]}.json"
    run.write(name, json.dumps({"text": text}).encode())


def unread(run: Store, seen: set[str]) -> list[str]:
    """Lines not yet in `seen`, in order; they are in it afterwards."""
    new = [name for name in run.names(NOTICES) if name not in seen]
    seen.update(new)
    return [str(json.loads(run.read(f"{NOTICES}/{name}"))["text"]) for name in new]
