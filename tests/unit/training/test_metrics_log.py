import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ray.errors import CheckpointError
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.metrics_log import MetricsLog, read_metrics


def steps(store: Store) -> list[int]:
    return [r["step"] for r in read_metrics(store)]


def append(store: Store, start: int, step: int) -> None:
    journal = MetricsLog(store, start)
    journal.append([{"step": step}])
    journal.close()


def test_lines_are_readable_while_the_run_goes_on_and_rewound_on_resume(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    journal = MetricsLog(store, 0)
    for step in (1, 2, 3):
        journal.append([{"step": step, "loss": 0.1}])
    journal.flush()
    assert steps(store) == [1, 2, 3]
    resumed = MetricsLog(store, 2)
    assert steps(store) == [1, 2]
    resumed.append([{"step": 3, "loss": 0.2}])
    resumed.close()
    assert [r["loss"] for r in read_metrics(store)] == [0.1, 0.1, 0.2]


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_holder_that_was_followed_and_woken_changes_no_line(tmp_path: Path, kind: str) -> None:
    store = Store(str(tmp_path) if kind == "local" else f"memory://{tmp_path.name}-followed")
    frozen = MetricsLog(store, 0, lease=1)
    frozen.append([{"step": step, "loss": 0.1} for step in (1, 2, 3)])
    frozen.flush()
    heir = MetricsLog(store, 2, lease=2)
    heir.append([{"step": 3, "loss": 0.2}])
    heir.close()
    frozen.append([{"step": 4, "loss": 0.1}])
    frozen.close()
    assert [r["loss"] for r in read_metrics(store)] == [0.1, 0.1, 0.2]
    # A newer one leaves nobody's lines behind it.
    MetricsLog(store, 3, lease=5).close()
    assert store.names() == ["metrics-000005.jsonl"]
    assert [r["loss"] for r in read_metrics(store)] == [0.1, 0.1, 0.2]


def test_a_line_cut_by_a_crash_is_not_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    append(store, 0, 1)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert steps(store) == [1]
    append(store, 1, 2)
    assert steps(store) == [1, 2]


def test_lost_lines_are_not_papered_over(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    append(store, 0, 2)
    with pytest.raises(CheckpointError, match="steps 1 to 2"):
        MetricsLog(store, 2)


def test_a_remote_journal_is_whole_after_a_flush(tmp_path: Path) -> None:
    store = Store(f"memory://{tmp_path.parent.name}-journal")
    journal = MetricsLog(store, 0)
    for step in range(1, 6):
        journal.append([{"step": step}])
    journal.flush()
    assert steps(store) == [1, 2, 3, 4, 5]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_every_bit(value: float) -> None:
    assert json.loads(json.dumps({"loss": value}))["loss"] == value
