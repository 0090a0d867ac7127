import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_ray.errors import CapacityError
from dreambooth_ray.models import weight_cache
from dreambooth_ray.models.weight_cache import (
    add_model_to_cache,
    fetched_models_folder,
    find_cached_model,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path))
    monkeypatch.setattr(weight_cache, "_held_locks", {})


def write(content: bytes) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "unet").mkdir(exist_ok=True)
        (folder / "unet" / "weights").write_bytes(content)

    return fill


def end_use() -> None:
    """As the end of this process would."""
    for lock in weight_cache._held_locks.values():
        os.close(lock)
    weight_cache._held_locks.clear()


def refuse(_: Path) -> None:
    raise AssertionError("it is there already")


def test_an_entry_is_filled_once_and_found_again() -> None:
    assert find_cached_model("one") is None
    folder = add_model_to_cache("one", 3, write(b"abc"))
    assert (folder / "unet" / "weights").read_bytes() == b"abc"
    assert find_cached_model("one") == add_model_to_cache("one", 3, refuse) == folder
    end_use()
    assert find_cached_model("one") == add_model_to_cache("one", 3, refuse) == folder


def test_a_damaged_entry_is_filled_anew() -> None:
    folder = add_model_to_cache("one", 3, write(b"abc"))
    end_use()
    (folder / "unet" / "weights").write_bytes(b"abd")
    assert find_cached_model("one") is None
    assert (add_model_to_cache("one", 3, write(b"abc")) / "unet/weights").read_bytes() == b"abc"
    end_use()
    (folder / "unet" / "weights").unlink()
    assert find_cached_model("one") is None


def test_a_fill_that_fails_leaves_no_entry_and_is_gone_on_with() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"1")
        raise ValueError("cut off")

    def go_on(folder: Path) -> None:
        assert (folder / "half").read_bytes() == b"1"
        (folder / "half").rename(folder / "whole")

    with pytest.raises(ValueError, match="cut off"):
        add_model_to_cache("one", 3, fail)
    assert find_cached_model("one") is None
    assert (add_model_to_cache("one", 3, go_on) / "whole").is_file()


def test_what_was_unused_for_longest_goes_first_and_nothing_that_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weight_cache, "_limit_bytes", 3 * 2**16)
    for age, name in enumerate(("newer", "older", "used")):
        folder = add_model_to_cache(name, 2**16, write(b"x" * 2**16))
        if name != "used":
            os.close(weight_cache._held_locks.pop(folder))
        record = folder.with_name(f"{name}.json")
        os.utime(record, (1e9 - age, 1e9 - age))
    add_model_to_cache("one more", 2**16, write(b"x" * 2**16))
    names = {path.name for path in fetched_models_folder().iterdir() if path.is_dir()}
    assert names == {"newer", "used", "one more"}
    add_model_to_cache("large", 9 * 2**16, write(b"x" * 9 * 2**16))
    names = {path.name for path in fetched_models_folder().iterdir() if path.is_dir()}
    assert names == {"used", "one more", "large"}, "those that are in use stay, beyond the bound"


_HOLD = """
import sys
from dreambooth_ray.models.weight_cache import find_cached_model
print(find_cached_model("one"), flush=True)
sys.stdin.readline()
"""


def test_what_another_process_uses_is_not_evicted_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = add_model_to_cache("one", 2**16, write(b"x" * 2**16))
    end_use()
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline().strip() == str(folder)
    monkeypatch.setattr(weight_cache, "_limit_bytes", 2**16)
    add_model_to_cache("two", 2**16, write(b"y"))
    assert folder.is_dir()
    other.communicate("end\n")
    add_model_to_cache("three", 2**16, write(b"z"))
    assert not folder.exists()


def test_a_full_disk_is_said_before_anything_is_fetched() -> None:
    with pytest.raises(CapacityError, match=r"GB free and the model takes .*DREAMBOOTH_CACHE"):
        add_model_to_cache("one", 2**60, refuse)
