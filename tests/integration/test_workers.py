"""The same run on one, two and four workers."""

from pathlib import Path

import pytest

from tests.integration.conftest import SMALL, train


@pytest.mark.fault
def test_the_number_of_workers_changes_no_curve(photos: Path, storage: str, tmp_path: Path) -> None:
    words = [*SMALL, "train.batch_size=4", "train.steps=40", "sample.every=0"]
    curves = {
        workers: [
            record["loss"]
            for record in train(
                tmp_path, photos, storage, *words, f"cluster.workers={workers}"
            ).metrics
        ]
        for workers in (1, 2, 4)
    }
    for workers in (2, 4):
        pairs = zip(curves[1], curves[workers], strict=True)
        worst = max(abs(one - several) for one, several in pairs)
        print(f"{workers} workers against one: {worst:.1e}")
        assert worst <= 1e-4
