"""Files of an artifact that storage can't give whole."""

from collections.abc import Iterator
from contextlib import contextmanager

from dreambooth_ray.errors import CheckpointError, StorageError
from dreambooth_ray.storage.retry import is_beyond_end
from dreambooth_ray.storage.store import Store


@contextmanager
def raise_damage(store: Store, name: str) -> Iterator[None]:
    """A block in which a file that is missing, or cut off, is a CheckpointError."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{store.uri}/{name} is missing") from error
    except StorageError as error:
        if is_beyond_end(error.__cause__):
            raise CheckpointError(f"{store.uri}/{name} is cut off: it is damaged") from error
        raise
