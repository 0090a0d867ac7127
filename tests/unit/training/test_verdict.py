from pathlib import Path

from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.verdict import (
    Verdict,
    read_end,
    read_verdict,
    spared,
    write_end,
    write_verdict,
)


def test_a_verdict_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    assert read_verdict(run) == Verdict()
    assert read_end(run) is None
    verdict = Verdict(20, (10, 20, 30), True)
    write_verdict(run, verdict)
    write_end(run, 30)
    assert read_verdict(run) == verdict
    assert read_end(run) == 30


def test_the_best_and_what_was_not_judged_are_spared() -> None:
    assert spared([10, 20, 30, 40], Verdict(20, (10, 20, 30))) == {20, 40}
    assert spared([10], Verdict()) == {10}
