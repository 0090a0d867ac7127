"""Checkpoints on their way: two hosts whose temporary folders differ, in two processes here."""

import tempfile
from pathlib import Path
from typing import Any

from torch import distributed, multiprocessing

from dreambooth_ray.config.load import parse_config
from dreambooth_ray.storage import manifest, paths
from dreambooth_ray.storage.store import Store
from dreambooth_ray.training.checkpoint.download import STATE, BaseModel
from dreambooth_ray.training.checkpoint.restore import restored_checkpoint
from dreambooth_ray.training.checkpoint.save import WorkerRank


def restore_on_host(rank: int, folder: Path, results: Any) -> None:
    """As the only worker of host `rank`, whose temporary folder is its own."""
    (folder / f"tmp-{rank}").mkdir()
    tempfile.tempdir = str(folder / f"tmp-{rank}")
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    config = parse_config("subject: {photos: x, class_noun: robot}", "test", [])
    model = BaseModel(folder, "")
    run = Store(str(folder / "run"))
    run.is_local = False  # as storage elsewhere: checkpoints are copied to the host
    with restored_checkpoint(run, config, model, WorkerRank(rank, 0, rank, 2)) as restored:
        assert restored is not None
        distributed.barrier()
        results.put((rank, str(restored.state), (restored.state / "shard").read_text()))
        restored.release()
        assert not restored.state.exists()
    distributed.destroy_process_group()


def test_hosts_with_different_temporary_folders_restore_alike(tmp_path: Path) -> None:
    shards = tmp_path / "in" / STATE
    shards.mkdir(parents=True)
    (shards / "shard").write_text("weights")
    run = Store(str(tmp_path / "run"))
    manifest.commit_artifact(run, paths.checkpoint(5), tmp_path / "in", {"step": 5})
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(restore_on_host, (tmp_path, results), nprocs=2)
    found = sorted(results.get() for _ in range(2))
    for rank, state, text in found:
        assert Path(state).is_relative_to(tmp_path / f"tmp-{rank}")
        assert text == "weights"
    assert [list((tmp_path / f"tmp-{rank}").iterdir()) for rank in range(2)] == [[], []]
