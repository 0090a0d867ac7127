"""Faults planted one by one, each found by its key, against a dashboard that really speaks HTTP."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.cluster_registry import ClusterEntry
from cluster.preflight_checks import fit_to_gpu_memory, format_findings, run_preflight
from cluster.preflight_finding import PreflightFinding
from dreambooth_ray.config.load import load_config, override_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.memory.training_memory import TrainingFootprint, estimate_training_footprint
from dreambooth_ray.storage.store import Store
from tests.footprints import estimate_by_formula, use_formula
from tests.nvidia_smi import install_nvidia_smi
from tests.ray_head import TOKEN, Server, ray_head


@pytest.fixture(scope="module", autouse=True)
def counted_once() -> Iterator[None]:
    """Counting a model takes half a second: once for each that the tests differ in."""
    footprints: dict[str, TrainingFootprint] = {}

    def remembered(config: Config, directory: Path) -> TrainingFootprint:
        key = f"{config.train!r}{config.cluster.workers}"
        if key not in footprints:
            footprints[key] = estimate_training_footprint(config, directory)
        return footprints[key]

    with pytest.MonkeyPatch.context() as patch:
        # What is advised is another test's.
        use_formula(patch)
        patch.setattr("cluster.preflight_checks.estimate_training_footprint", remembered)
        yield


@pytest.fixture
def head() -> Iterator[Server]:
    with ray_head() as server:
        yield server


def make_entry(head: Server, **changes: Any) -> ClusterEntry:
    fields = {"address": f"http://127.0.0.1:{head.server_port}", "token": TOKEN}
    return ClusterEntry.model_validate({**fields, **changes})


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> Config:
    return make_config(photos, tmp_path)


def make_config(photos: Path, tmp_path: Path, *overrides: str) -> Config:
    all_overrides = [f"subject.photos={photos}", f"storage.uri={tmp_path}", *overrides]
    return load_config("toy-robot", all_overrides)


def fatal_keys(findings: list[PreflightFinding]) -> list[str]:
    return [f.key for f in findings if f.fatal]


def test_nothing_wrong_is_nothing_found(config: Config, head: Server) -> None:
    assert fatal_keys(run_preflight(config)) == []
    assert fatal_keys(run_preflight(config, make_entry(head))) == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("subject.photos=/nowhere", "subject.photos"),
        ("model.uri=/nowhere", "model.uri"),
        ("train.resolution=60", "train.resolution"),
        ("storage.uri=/proc/nowhere", "storage.uri"),
        ("storage.uri=nosuch://bucket", "storage.uri"),
        ("cluster.gpus=true", "cluster.workers"),
    ],
)
def test_a_wrong_setting_is_found_by_its_key(
    photos: Path, tmp_path: Path, head: Server, override: str, key: str
) -> None:
    wrong = make_config(photos, tmp_path, override)
    assert fatal_keys(run_preflight(wrong, make_entry(head))) == [key]


@pytest.mark.parametrize(
    ("size", "overrides", "key"),
    [
        ((40, 4000), (), "subject.photos"),
        ((128, 72), ("train.bucket_step_px=64",), "train.bucket_step_px"),
        ((128, 72), ("train.resolution=[64, 96]", "prior.count=4"), "prior.count"),
        ((128, 72), (), None),
    ],
)
def test_photographs_that_no_bucket_fits_are_found(
    size: tuple[int, int], overrides: tuple[str, ...], key: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", size, (20, 90, 200)).save(folder / "a.png")
    Image.new("RGB", (128, 128), (20, 90, 200)).save(folder / "b.png")
    buckets = "train.buckets=true", "train.bucket_step_px=16", *overrides
    findings = run_preflight(make_config(folder, tmp_path, *buckets))
    assert fatal_keys(findings) == ([key] if key else [])


def test_an_adapter_without_layers_is_found(photos: Path, tmp_path: Path) -> None:
    bad = make_config(photos, tmp_path, "train.method=lora", "train.lora.target_modules=[nothing]")
    assert fatal_keys(run_preflight(bad)) == ["train.lora.target_modules"]


def test_a_damaged_photograph_is_found(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    first = sorted(photos.glob("*.png"))[0]
    (folder / "whole.png").write_bytes(first.read_bytes())
    (folder / "half.png").write_bytes(first.read_bytes()[:300])
    findings = run_preflight(make_config(folder, tmp_path))
    assert fatal_keys(findings) == ["subject.photos"]
    assert "half.png" in findings[0].text


def test_a_caption_that_training_would_refuse_is_found(photos: Path, tmp_path: Path) -> None:
    settings = "prior.kind=output", "train.prompt=a photo of a dog"
    findings = run_preflight(make_config(photos, tmp_path, *settings))
    assert fatal_keys(findings) == ["prior.captions"]
    assert "has no identifier" in next(f.text for f in findings if f.fatal)


def test_doubtful_settings_of_captions_are_told_as_training_tells_them(
    photos: Path, tmp_path: Path
) -> None:
    findings = run_preflight(make_config(photos, tmp_path, "captions.tag_dropout=0.5"))
    assert not fatal_keys(findings)
    (finding,) = [finding for finding in findings if finding.key == "captions"]
    assert "no caption has a tag" in finding.text


def test_a_caption_that_can_not_be_read_is_found(photos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "mine"))
    (folder / f"{min(photos.glob('*.png')).stem}.txt").write_bytes(b"a sks robot\0")
    findings = run_preflight(make_config(folder, tmp_path))
    assert fatal_keys(findings) == ["subject.photos"]
    assert "holds NUL" in next(f.text for f in findings if f.fatal)


def test_what_the_doctor_says_is_a_warning(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("one.png", "two.png"):
        shutil.copy(sorted(photos.glob("*.png"))[0], folder / name)
    findings = run_preflight(make_config(folder, tmp_path))
    said = [f for f in findings if "one.png and two.png" in f.text]
    assert [(f.key, f.fatal) for f in said] == [("subject.photos", False)]


def test_an_ordinary_word_and_a_small_image_are_doubted(photos: Path, tmp_path: Path) -> None:
    doubtful = make_config(photos, tmp_path, "subject.identifier=dog", "train.resolution=256")
    findings = run_preflight(doubtful)
    assert fatal_keys(findings) == []
    doubts = {f.key for f in findings if not f.is_note}
    assert doubts == {"subject.identifier", "subject.photos"}


@pytest.mark.parametrize("override", ["cluster.gpus=false", "cluster.gpus=true"])
def test_what_a_worker_takes_is_told_whether_it_fits_or_not(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    install_nvidia_smi(tmp_path / "bin", monkeypatch, "0, GPU-aa11, 81920")
    config = make_config(photos, tmp_path, override)
    findings = run_preflight(config)
    assert fatal_keys(findings) == []
    (note,) = [line for line in format_findings(findings) if line.startswith("note: memory: ")]
    device = "GPU" if config.cluster.gpus else "host"
    assert re.search(rf"takes about \d+\.\d GiB of its {device}'s memory", note)


def test_gpus_that_this_machine_has_not_are_missed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    install_nvidia_smi(tmp_path / "bin", monkeypatch)
    config = make_config(photos, tmp_path, "cluster.gpus=true")
    findings = run_preflight(config)
    assert fatal_keys(findings) == ["cluster.gpus"]
    assert "nvidia-smi tells of no GPU" in findings[0].text
    # Of others nothing is known here.
    assert fatal_keys(run_preflight(config, is_elsewhere=True)) == []
    at_address = override_config(config, ["cluster.address=127.0.0.1:6379"])
    assert fatal_keys(run_preflight(at_address)) == []


def test_a_store_without_conditional_writes_is_found(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "create", lambda self, name, data: self.write(name, data) or True)
    assert fatal_keys(run_preflight(config)) == ["storage.uri"]


def test_a_folder_of_this_machine_is_no_storage_for_another(config: Config) -> None:
    elsewhere = ClusterEntry(address="http://192.0.2.1:8265")
    findings = [f for f in run_preflight(config, elsewhere) if f.key == "storage.uri"]
    assert "object store" in findings[0].text


@pytest.mark.parametrize(
    ("attribute", "value"), [("ray", "2.9.0"), ("python", "3.9.1"), ("memory", 64 * 2**20)]
)
def test_a_cluster_that_does_not_fit_is_found(
    config: Config, head: Server, attribute: str, value: Any
) -> None:
    setattr(head, attribute, value)
    fatal = {"memory": ["train.method"]}.get(attribute, ["image"])
    assert fatal_keys(run_preflight(config, make_entry(head))) == fatal


def test_too_few_gpus_are_found(photos: Path, tmp_path: Path, head: Server) -> None:
    head.gpus = {"GPU": 1.0}
    with_gpus = make_config(photos, tmp_path, "cluster.gpus=true")
    assert fatal_keys(run_preflight(with_gpus, make_entry(head))) == ["cluster.workers"]


@pytest.fixture
def large_config(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Of a run on GPUs whose step takes 4,900 MiB."""
    monkeypatch.setattr("cluster.preflight_checks.estimate_training_footprint", estimate_by_formula)
    return make_config(photos, tmp_path, "cluster.gpus=true", "cluster.workers=1")


def test_gpus_that_are_too_small_are_found_with_what_would_fit(
    large_config: Config, head: Server
) -> None:
    head.gpus, head.cards = {"GPU": 1.0}, [{"memoryTotal": 4096}]
    findings = run_preflight(large_config, make_entry(head))
    assert fatal_keys(findings) == ["train.method"]
    assert "it would need" in findings[0].text
    head.cards = [{"memoryTotal": 4096}, {"memoryTotal": 81920}]
    assert fatal_keys(run_preflight(large_config, make_entry(head))) == []


def test_a_run_is_fitted_to_a_clusters_gpus(large_config: Config, head: Server) -> None:
    head.gpus, head.cards = {"GPU": 1.0}, [{"memoryTotal": 4096}]
    lines: list[str] = []
    assert fit_to_gpu_memory(large_config, make_entry(head), lines.append) is large_config
    wanted = override_config(large_config, ["memory.fit=true"])
    fitted = fit_to_gpu_memory(wanted, make_entry(head), lines.append)
    assert fatal_keys(run_preflight(fitted, make_entry(head))) == []
    assert "memory.fit: a worker takes about" in lines.pop()
    assert not fitted.memory.fit
    assert fit_to_gpu_memory(wanted, make_entry(head, autoscaled=True), lines.append) is wanted


def test_gpus_of_this_machine_are_looked_at(
    large_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(tmp_path / "bin", monkeypatch, "0, GPU-aa11, 4096")
    assert fatal_keys(run_preflight(large_config)) == ["train.method"]
    assert fatal_keys(run_preflight(large_config, is_elsewhere=True)) == []


def test_hosts_of_a_cluster_that_adds_them_by_itself_are_not_counted(
    photos: Path, tmp_path: Path, head: Server
) -> None:
    head.cpus, head.memory = 0.0, 64 * 2**20
    config = make_config(photos, tmp_path)
    fatal = [f for f in run_preflight(config, make_entry(head)) if f.fatal]
    assert "autoscaled: true" in next(f.text for f in fatal if f.key == "cluster.workers")
    assert fatal_keys(run_preflight(config, make_entry(head, autoscaled=True))) == []
    with_gpus = make_config(photos, tmp_path, "cluster.gpus=true")
    assert fatal_keys(run_preflight(with_gpus, make_entry(head, autoscaled=True))) == []


def test_a_refused_token_is_found(config: Config, head: Server) -> None:
    assert fatal_keys(run_preflight(config, make_entry(head, token="wrong"))) == ["token"]


def test_a_silent_cluster_is_found(config: Config) -> None:
    nobody = ClusterEntry(address="http://127.0.0.1:9", token=TOKEN)
    assert fatal_keys(run_preflight(config, nobody)) == ["address"]


def test_a_missing_image_is_found(config: Config, head: Server) -> None:
    registry = f"127.0.0.1:{head.server_port}"
    present = make_entry(head, code="image", image=f"{registry}/dreambooth:1")
    missing = make_entry(head, code="image", image=f"{registry}/dreambooth:2")
    assert fatal_keys(run_preflight(config, present)) == []
    assert fatal_keys(run_preflight(config, missing)) == ["image"]
    digest = f"sha256:{'0' * 64}"
    for name in (f"dreambooth@{digest}", f"dreambooth:1@{digest}"):
        pinned = make_entry(head, code="image", image=f"{registry}/{name}")
        assert fatal_keys(run_preflight(config, pinned)) == []
    other = make_entry(head, code="image", image=f"{registry}/dreambooth@sha256:{'1' * 64}")
    assert fatal_keys(run_preflight(config, other)) == ["image"]
    assert fatal_keys(run_preflight(config, make_entry(head, code="image"))) == ["image"]
