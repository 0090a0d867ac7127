"""Which object store this process means."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from s3fs import S3FileSystem


@contextmanager
def pointed_at(environment: Mapping[str, str]) -> Iterator[None]:
    """S3 with these keys and this endpoint, for the length of the block.

    s3fs reads them when it connects, and hands the same connection to all who ask alike: without
    a word it would ask the store of the module before.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        try:
            yield
        finally:
            S3FileSystem.clear_instance_cache()
