from pathlib import Path

import pytest

from dreambooth_ray.config.load import load_config
from dreambooth_ray.errors import CapacityError
from dreambooth_ray.memory.device_memory import RESERVED_BYTES
from dreambooth_ray.preparation import PreparedRun, fit_into_memory
from tests.footprints import MIB, estimate_by_formula, use_formula
from tests.nvidia_smi import install_nvidia_smi

# A step of all weights needs 2,600 to 3,000.
CARD_MIB = 1500 + RESERVED_BYTES // MIB


def prepare(*overrides: str) -> PreparedRun:
    settings = ("subject.photos=p", "subject.class_noun=robot", "train.batch_size=4")
    return PreparedRun(load_config("sd15-full-24gb", [*settings, *overrides]), Path())


@pytest.fixture(autouse=True)
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU into which the recipe's step does not fit."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    install_nvidia_smi(tmp_path / "bin", monkeypatch, f"0, GPU-aa11, {CARD_MIB}")
    use_formula(monkeypatch)


def test_a_step_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(CapacityError) as caught:
        fit_into_memory(prepare(), print)
    message = str(caught.value)
    assert message.startswith("train.method: a worker needs about 3.4 GiB (2.3 trained weights")
    assert "the largest GPU has 2.1, 0.6 of them CUDA's own; it would need" in message
    assert "train.optimizer=adamw8bit" in message
    assert message.endswith("memory.fit=true sets what is installed of these itself")
    assert "\n" not in message


def test_settings_that_make_it_fit_are_set_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    # Without bitsandbytes nothing but adapters fit, with a rate of their own.
    monkeypatch.setattr("dreambooth_ray.preparation.is_installed", lambda package: False)
    fitted = fit_into_memory(prepare("memory.fit=true"), lines.append)
    needed_bytes = estimate_by_formula(fitted.config, Path()).total_bytes
    assert needed_bytes <= CARD_MIB * MIB - RESERVED_BYTES
    (line,) = lines
    assert line.startswith("memory.fit: a worker takes about")
    assert "train.method=lora" in line
    assert fitted.config.train.method == "lora"
    assert fitted.config.train.lr == 1e-4
    assert fit_into_memory(fitted, lines.append) is fitted


def test_what_fits_and_what_is_not_known_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    on_cluster = prepare("cluster.address=10.0.0.1:6379", "memory.fit=true")
    assert fit_into_memory(on_cluster, lines.append) is on_cluster
    assert "submit --cluster" in lines.pop()
    on_cpus = prepare("cluster.gpus=false")
    assert fit_into_memory(on_cpus, lines.append) is on_cpus
    install_nvidia_smi(tmp_path / "bin", monkeypatch, f"0, GPU-aa11, {8 * CARD_MIB}")
    fits = prepare()
    assert fit_into_memory(fits, lines.append) is fits
    monkeypatch.setenv("PATH", str(tmp_path))
    without_gpu = prepare("memory.fit=true")
    assert fit_into_memory(without_gpu, lines.append) is without_gpu
    assert "nvidia-smi tells of no GPU here" in lines.pop()
    assert not lines


def test_what_can_never_fit_is_refused_with_memory_fit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(tmp_path / "bin", monkeypatch, "0, GPU-aa11, 601")
    with pytest.raises(CapacityError, match="no setting makes it fit"):
        fit_into_memory(prepare("memory.fit=true"), print)
