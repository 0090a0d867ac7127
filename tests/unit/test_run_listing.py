from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.errors import ConfigError, StorageError
from dreambooth_ray.run_listing import RunSummary, select_run_page, summarize_runs
from dreambooth_ray.storage.store import Store

_IDS = st.lists(st.text("ab-", min_size=1, max_size=4), unique=True, max_size=20)


@given(_IDS, st.sampled_from(["", "a", "a*", "?b"]), st.integers(1, 5))
def test_every_run_is_on_one_page(run_ids: list[str], pattern: str, limit: int) -> None:
    shown: list[str] = []
    has_more = True
    while has_more:
        page, has_more = select_run_page(run_ids, pattern, shown[-1] if shown else "", limit)
        assert len(page) <= limit
        shown += page
    assert shown == select_run_page(run_ids, pattern, "", 100)[0]


def test_runs_are_found_by_a_part_of_their_id_or_a_pattern() -> None:
    run_ids = ["my-dog", "dog-2", "cat"]
    assert select_run_page(run_ids, "dog", "", 9)[0] == ["my-dog", "dog-2"]
    assert select_run_page(run_ids, "dog*", "", 9)[0] == ["dog-2"]
    with pytest.raises(ConfigError, match="eel"):
        select_run_page(run_ids, "", "eel", 9)


def test_a_run_is_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    for name in ("done/bundle/manifest.json", "done/checkpoints/step-00000020.json", "halted/stop",
                 "halted/checkpoints/step-00000005.json", "half/bundle/card.md"):  # fmt: skip
        store.write(name, b"")
    uris = [f"{store.uri}/{name}" for name in ("done", "halted", "half", "nothing")]
    assert summarize_runs(uris, lambda _: "running") == [
        RunSummary(20, "finished"),
        RunSummary(5, "stopped"),
        RunSummary(0, "running"),
        RunSummary(0, "running"),
    ]

    def fail(*_: object) -> None:
        raise StorageError("away")

    monkeypatch.setattr(Store, "names", fail)
    assert "does not answer" in summarize_runs(uris[:1])[0].state
