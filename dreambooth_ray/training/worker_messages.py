"""Messages of workers to the person at the command line, through the run's folder."""

import json
import time
import uuid

from dreambooth_ray.storage.store import Store

MESSAGES = "notices"


def post_message(run: Store, text: str) -> None:
    """Leave a line for whoever started the run."""
    message_file = f"{MESSAGES}/{time.time_ns():020d}-{uuid.uuid4().hex[:6]}.json"
    run.write(message_file, json.dumps({"text": text}).encode())


def read_new_messages(run: Store, read_names: set[str]) -> list[str]:
    """Lines of files not yet in `read_names`, in order; their names are in it afterwards."""
    new_message_names = [name for name in run.names(MESSAGES) if name not in read_names]
    # All are read before any counts as read: storage may fail half way.
    message_texts = [
        str(json.loads(run.read(f"{MESSAGES}/{name}"))["text"]) for name in new_message_names
    ]
    read_names.update(new_message_names)
    return message_texts
