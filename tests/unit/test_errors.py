import pickle

import pytest

from dreambooth_ray import errors

KINDS = [
    errors.DreamBoothError,
    errors.ConfigError,
    errors.DataError,
    errors.CheckpointError,
    errors.StorageError,
    errors.CapacityError,
]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling_with_their_message(kind: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(kind("train.lr=-1: must be above 0")))
    assert type(copy) is kind
    assert str(copy) == "train.lr=-1: must be above 0"


def test_every_kind_is_a_dreambooth_error() -> None:
    assert all(issubclass(kind, errors.DreamBoothError) for kind in KINDS)
