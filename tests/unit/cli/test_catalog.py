import sys
from pathlib import Path

import pytest

from dreambooth_ray.cli import main
from dreambooth_ray.runs import open_run
from dreambooth_ray.storage.store import Store
from dreambooth_ray.storage.version_catalog import SubjectVersionCatalog, entry_file_name
from tests.unit.test_runs import config  # noqa: F401  a fixture


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dreambooth", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            main.main()
        printed = capsys.readouterr()
        return int(exit_info.value.code or 0), printed.out, printed.err

    return run


def _write_bundles(storage: Path, *run_ids: str) -> None:
    for run_id in run_ids:
        manifest = storage / "runs" / run_id / "bundle" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text('{"about": {"kind": "bundle"}, "files": []}')


def test_a_catalog_is_rebuilt_and_listed_page_by_page(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _write_bundles(tmp_path, "dog", "cat", "eel")
    code, out, _ = call("catalog", "rebuild", str(tmp_path))
    assert (code, out.split(";")[0]) == (0, "3 subjects in 3 runs")
    _, first, hint = call("catalog", "ls", str(tmp_path), "--limit", "2")
    after = first.splitlines()[-1].split("\t")[0]
    assert f"--after {after}" in hint
    _, second, hint = call("catalog", "ls", str(tmp_path), "--limit", "2", "--after", after)
    shown = [line.split("\t")[0] for line in (first + second).splitlines()]
    assert (sorted(shown), hint) == (["cat", "dog", "eel"], "")


def test_an_entry_that_can_not_be_read_is_shown_as_that(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _write_bundles(tmp_path, "dog")
    call("catalog", "rebuild", str(tmp_path))
    (tmp_path / entry_file_name("dog")).write_text('{"format": 2}')
    _, out, _ = call("catalog", "ls", str(tmp_path))
    assert "newer version" in out
    code, _, err = call("catalog", "rebuild", str(tmp_path))
    assert (code, "newer version" in err) == (1, True)


def test_a_run_is_removed_with_its_files_or_without(call, config) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    run = open_run(config)
    run.write("bundle/manifest.json", b'{"about": {"kind": "bundle"}, "files": []}')
    storage = config.storage.uri
    call("catalog", "rebuild", storage)
    assert call("catalog", "remove", run.uri)[0] == 0
    assert SubjectVersionCatalog(Store(storage)).list_subjects() == []
    assert run.exists("bundle/manifest.json")
    assert call("catalog", "remove", run.uri, "--files")[0] == 0
    assert run.names() == []
    code, _, err = call("catalog", "remove", run.uri)
    assert (code, "is not a run" in err) == (2, True)


@pytest.mark.parametrize("name", ["config.yaml", "leases/000001.json"])
def test_a_run_that_can_not_be_read_is_removed_with_its_files(  # type: ignore[no-untyped-def]
    call, tmp_path: Path, name: str
) -> None:
    """Of another version, damaged, or half deleted."""
    run = Store(str(tmp_path / "runs/mine"))
    run.write(name, b'{"released": true}')
    run.write("metrics.jsonl", b"")
    assert call("catalog", "remove", run.uri)[0] == 2
    assert call("catalog", "remove", run.uri, "--files")[0] == 0
    assert run.names() == []
    assert call("catalog", "remove", run.uri, "--files")[0] == 2
