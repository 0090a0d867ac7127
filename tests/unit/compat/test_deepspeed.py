import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from dreambooth_ray.compat.deepspeed import forgo_compiled_communication, write_universal_state
from tests.unit.compat.private_api import check_source, find_private

pytest.importorskip("deepspeed", reason="deepspeed is an extra")


def test_deepspeed_still_has_what_is_used_of_it() -> None:
    (operations,) = find_private(
        "deepspeed", "deepspeed", "ops.__compatible_ops__", user="deepspeed.py"
    )
    assert "deepspeed_shm_comm" in operations, "deepspeed: it compiles something else by now"
    script, main = find_private(
        "deepspeed", "deepspeed.checkpoint", "ds_to_universal", "ds_to_universal.main",
        user="deepspeed.py",
    )  # fmt: skip
    assert list(inspect.signature(main).parameters) == ["args"]
    arguments = ("input_folder", "output_folder", "num_extract_workers", "num_merge_workers",
                 "keep_temp_folder", "strict", "inject_missing_state")  # fmt: skip
    read = [f"args.{name}" for name in arguments]
    check_source("deepspeed", script, read, user="deepspeed.py")


def test_nothing_is_compiled_for_communication(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    forgo_compiled_communication()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_the_script_gets_all_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.checkpoint import ds_to_universal

    namespaces: list[Any] = []
    monkeypatch.setattr(ds_to_universal, "main", namespaces.append)
    write_universal_state(Path("a"), Path("b"))
    read = set(re.findall(r"\bargs\.(\w+)", inspect.getsource(ds_to_universal)))
    assert read == set(vars(namespaces[0])), "deepspeed: its script reads other arguments"
