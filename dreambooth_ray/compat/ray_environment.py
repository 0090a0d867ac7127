"""Settings that Ray reads from the environment."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def default_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, these are set for this process and those that it starts; the user's own go first."""
    new_values = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new_values)
    try:
        yield
    finally:
        for name in new_values:
            os.environ.pop(name, None)
