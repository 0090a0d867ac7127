import gc
from collections.abc import Iterator

import pytest

from dreambooth_ray.imports import pause_garbage_collection


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_nobody_looks_for_garbage_while_importing_nor_among_what_was_imported() -> None:
    assert gc.isenabled()
    with pause_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 1000


def test_an_import_that_fails_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ImportError), pause_garbage_collection():
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_who_never_looks_for_garbage_is_left_alone() -> None:
    gc.disable()
    with pause_garbage_collection():
        pass
    assert not gc.isenabled()
