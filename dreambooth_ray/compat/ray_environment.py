"""Settings that Ray reads from the environment."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def setting_default_environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Inside, these are set for this process and those that it starts; the user's own go first."""
    added_variables = {
        variable_name: value
        for variable_name, value in values.items()
        if variable_name not in os.environ
    }
    os.environ.update(added_variables)
    try:
        yield
    finally:
        for variable_name in added_variables:
            os.environ.pop(variable_name, None)
