"""Progress of a job that runs, between two writes to storage."""

from unittest.mock import Mock

from serve.active_image_jobs import ActiveImageJob
from serve.replica_messages import SamplingProgress


def test_progress_reaches_its_total_where_an_edit_leaves_steps_out() -> None:
    job = ActiveImageJob(Mock(), Mock())
    for step in range(1, 13):
        job.record_event(0, SamplingProgress(step, 12))
    job.record_event(1, SamplingProgress(3, 12))
    assert job.take_progress()[:2] == (15, 24)
    assert not job.has_unsaved_progress
