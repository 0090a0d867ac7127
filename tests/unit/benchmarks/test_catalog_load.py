from pathlib import Path

import pytest

from benchmarks.catalog_load import (
    fill_folder,
    list_all,
    make_files,
    make_manifest,
    subject_name,
    summarize,
)
from dreambooth_ray.storage.catalog import position, publish_run
from dreambooth_ray.storage.store import Store


def test_what_is_filled_in_is_what_commits_leave(tmp_path: Path) -> None:
    for number in (0, 41):
        run = Store(str(tmp_path)).sub(f"runs/{subject_name(number)}")
        run.write("bundle/manifest.json", make_manifest(subject_name(number)))
        publish_run(run)
        for name, data in make_files(range(number, number + 1)):
            assert (tmp_path / name).read_bytes() == data


def test_all_pages_are_walked(tmp_path: Path) -> None:
    fill_folder(tmp_path, 50)
    assert list_all(tmp_path) == 50
    (tmp_path / "catalog" / position(subject_name(7))).unlink()
    assert list_all(tmp_path) == 49


def test_times_are_summed_up() -> None:
    summary = summarize([0.001 * k for k in range(1, 102)])
    assert summary == {"median": 51.0, "p99": 100.0, "most": 101.0}
    assert summarize([0.5])["p99"] == pytest.approx(500.0)
