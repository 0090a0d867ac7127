from pathlib import Path

import pytest

from benchmarks.catalog_load import (
    count_listed_subjects,
    fill_catalog_folder,
    fill_folder_once,
    generate_catalog_files,
    make_manifest,
    measure_gateway_on_folder,
    subject_name,
    summarize_times_ms,
)
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import publish_run, subject_listing_position


def test_what_is_filled_in_is_what_commits_leave(tmp_path: Path) -> None:
    for number in (0, 41):
        run = Store(str(tmp_path)).sub(f"runs/{subject_name(number)}")
        run.write("bundle/manifest.json", make_manifest(subject_name(number)))
        publish_run(run)
        for name, data in generate_catalog_files(range(number, number + 1)):
            assert (tmp_path / name).read_bytes() == data


def test_all_pages_are_walked(tmp_path: Path) -> None:
    fill_catalog_folder(tmp_path, 50)
    assert count_listed_subjects(tmp_path) == 50
    (tmp_path / "catalog" / subject_listing_position(subject_name(7))).unlink()
    assert count_listed_subjects(tmp_path) == 49


def test_times_are_summed_up() -> None:
    summary = summarize_times_ms([0.001 * k for k in range(1, 102)])
    assert summary == {"median": 51.0, "p99": 100.0, "most": 101.0}
    assert summarize_times_ms([0.5])["p99"] == pytest.approx(500.0)


def test_a_folder_that_is_another_ones_stays(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        measure_gateway_on_folder(tmp_path, 3, is_kept=False)
    assert (tmp_path / "photo.png").read_bytes() == b"mine"


def test_a_folder_is_filled_once(tmp_path: Path) -> None:
    folder = tmp_path / "catalog"
    seconds = fill_folder_once(folder, 3)
    assert fill_folder_once(folder, 3) == seconds
    with pytest.raises(SystemExit, match="has 3 subjects"):
        measure_gateway_on_folder(folder, 4, is_kept=False)
    assert count_listed_subjects(folder) == 3
