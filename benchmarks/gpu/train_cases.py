"""Training steps of the product's module, and of diffusers' script, on one device."""

import hashlib
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.ceiling import count_flops
from benchmarks.gpu import device as devices
from benchmarks.plain_loop import PlainLoop
from benchmarks.random_models import ModelSize, make_random_components
from dreambooth_ray.config.load import parse_config
from dreambooth_ray.config.schema import Config
from dreambooth_ray.data.subject import Photograph
from dreambooth_ray.models.components import Components
from dreambooth_ray.models.trainable_params import apply_train_method
from dreambooth_ray.training.batch import Batch
from dreambooth_ray.training.dataset import TrainingDataset
from dreambooth_ray.training.module import DreamBoothModule

WARMUP_STEPS = 5


@dataclass(frozen=True)
class TrainingCase:
    """settings: of the configuration; peer: whether diffusers' loop is timed beside it."""

    name: str
    settings: tuple[str, ...]
    peer: bool = False

    @property
    def is_half(self) -> bool:
        """Whether products are computed in half precision."""
        return "train.precision=32" not in self.settings


FULL = ("train.method=full", "train.text_encoder=false")
LORA = ("train.method=lora",)
BF16, FP32 = ("train.precision=bf16-mixed",), ("train.precision=32",)
CASES = (
    TrainingCase("lora, bf16", (*LORA, *BF16), peer=True),
    TrainingCase("full, bf16", (*FULL, *BF16), peer=True),
    TrainingCase("lora, bf16, without graphs", (*LORA, *BF16, "train.cuda_graphs=false")),
    TrainingCase("full, bf16, without graphs", (*FULL, *BF16, "train.cuda_graphs=false")),
    TrainingCase("lora, float32", (*LORA, *FP32), peer=True),
    TrainingCase("full, float32", (*FULL, *FP32)),
    TrainingCase("lora, bf16, 4 + 4 images", (*LORA, *BF16, "train.batch_size=4"), peer=True),
    TrainingCase("lora, bf16, checkpointing", (*LORA, *BF16, "train.gradient_checkpointing=true")),
    TrainingCase("full, bf16, checkpointing", (*FULL, *BF16, "train.gradient_checkpointing=true")),
    TrainingCase("full, bf16, text encoder", ("train.method=full", *BF16)),
    TrainingCase("full, bf16, 8-bit AdamW", (*FULL, *BF16, "train.optimizer=adamw8bit")),
    TrainingCase("lora, int8", (*LORA, *BF16, "model.quantization=int8")),
    TrainingCase("lora, fp8", (*LORA, *BF16, "model.quantization=fp8")),
    TrainingCase("lora, nf4", (*LORA, *BF16, "model.quantization=nf4")),
    TrainingCase("dora, bf16", (*LORA, *BF16, "train.lora.dora=true")),
    TrainingCase("kv, bf16", ("train.method=kv", *BF16)),
    TrainingCase("lora, bf16, blocks compiled", (*LORA, *BF16, "train.compile=blocks")),
    TrainingCase("full, bf16, blocks compiled", (*FULL, *BF16, "train.compile=blocks")),
)


class PairedDataset(TrainingDataset):
    """Batches whose second half stands for class images, which would come from an actor pool."""

    def make_batch(self, step: int, part: int = 0) -> Batch:
        """Both halves are photographs."""
        batch = super().make_batch(step, part)
        return replace(batch, num_photographs=batch.num_photographs // 2)


def make_paired_dataset(config: Config, parts: Components, size: ModelSize) -> PairedDataset:
    """Of four photographs of noise."""
    train_config = config.train.model_copy(update={"batch_size": 2 * config.train.batch_size})
    photographs = make_noise_photographs(4, size.side_px)
    doubled_batch_config = config.model_copy(update={"train": train_config})
    return PairedDataset(doubled_batch_config, parts, [photographs], None, (0, 1))


@dataclass
class StepTimer(pl.Callback):
    """Times the steps after WARMUP_STEPS, and counts the host's waits in the last of them."""

    device: torch.device
    steps_s: list[float] = field(default_factory=list)
    waits: Counter[str] = field(default_factory=Counter)
    losses: list[torch.Tensor] = field(default_factory=list)
    num_timed: int = 10
    _start_s: float = 0.0
    _counter: Any = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called by Lightning after each step."""
        self.losses.append(outputs["loss"].detach())
        steps_done = batch_idx + 1
        if steps_done in (WARMUP_STEPS, WARMUP_STEPS + self.num_timed):
            devices.wait_for_device(self.device)
            if steps_done == WARMUP_STEPS:
                devices.reset_peak(self.device)
                self._start_s = time.perf_counter()
            else:
                self.steps_s.append((time.perf_counter() - self._start_s) / self.num_timed)
                self._counter = devices.count_host_waits(self.device)
                self.waits = self._counter.__enter__()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning after the last step."""
        if self._counter is not None:
            self._counter.__exit__(None, None, None)


NUM_COUNTED = 3


def make_config(size: ModelSize, is_gpu: bool, num_steps: int, settings: tuple[str, ...]) -> Config:
    """A configuration of a case; a batch of 1 is one photograph and one class image."""
    default_overrides = [
        "run_id=gpu", "seed=7", "subject.photos=photos", "subject.class_noun=robot",
        "prior.count=8", f"train.resolution={size.side_px}", f"train.steps={num_steps}",
        "train.batch_size=1", "train.lr=1.0e-6", f"cluster.gpus={str(is_gpu).lower()}",
        "cluster.workers=1",
    ]  # fmt: skip
    return parse_config("", "the benchmark", [*default_overrides, *settings])


def make_noise_photographs(count: int, side_px: int) -> list[Photograph]:
    """Photographs of noise: what is on them costs nothing."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (count, side_px, side_px, 3), dtype=np.uint8)
    return [
        Photograph(Path(f"{k}.png"), Image.fromarray(p), ("a sks robot",))
        for k, p in enumerate(pixels)
    ]


class OurTraining:
    """The product's dataset and module under Lightning, less Ray, checkpoints and loggers."""

    def __init__(
        self, case: TrainingCase, size: ModelSize, device: torch.device, num_timed: int
    ) -> None:
        num_steps = WARMUP_STEPS + num_timed + NUM_COUNTED
        self._device = device
        self.config = make_config(size, device.type == "cuda", num_steps, case.settings)
        components = make_random_components(size, device)
        apply_train_method(self.config, components, quantizes=True)
        dataset = make_paired_dataset(self.config, components, size)
        components.vae.to("cpu")
        self.module = DreamBoothModule(self.config, components)
        self.timer = StepTimer(device, num_timed=num_timed)
        self._loader = DataLoader(dataset, batch_size=None, pin_memory=device.type == "cuda")
        self._trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            max_steps=num_steps, max_epochs=-1, devices=1, precision=self.config.train.precision,
            logger=False, callbacks=[self.timer], enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
            gradient_clip_val=self.config.train.max_grad_norm,
        )  # fmt: skip

    def run(self) -> None:
        """All steps."""
        self._trainer.fit(self.module, self._loader)

    def hash_result(self) -> str:
        """SHA-256 of all losses and of the trained weights."""
        digest = hashlib.sha256(torch.stack(self.timer.losses).cpu().numpy().tobytes())
        for name, parameter in sorted(self.module.named_parameters()):
            if parameter.requires_grad:
                digest.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def count_flops(self) -> int:
        """Of a forward and a backward, products and convolutions."""
        batch = next(iter(self._loader))
        self.module.to(self._device)
        autocast_dtype = (
            torch.bfloat16 if self.config.train.precision == "bf16-mixed" else torch.float32
        )

        def run_forward_backward() -> None:
            with torch.autocast(
                self._device.type, autocast_dtype, enabled=autocast_dtype != torch.float32
            ):
                sample_errors = self.module.compute_errors(batch.on_device(self._device))
            torch.autograd.backward(sample_errors.mean())

        return count_flops(run_forward_backward)


def measure_case(
    case: TrainingCase, size: ModelSize, device: torch.device, num_timed: int
) -> dict[str, Any]:
    """Seconds a step, peak memory, utilisation, waits of the host; and the peer's."""
    devices.free_memory(device)
    our_training = OurTraining(case, size, device, num_timed)
    our_training.run()
    step_s = our_training.timer.steps_s[0]
    record: dict[str, Any] = {
        "step_s": round(step_s, 5),
        **devices.read_peak(device),
        "waits_a_step": {n: c / NUM_COUNTED for n, c in our_training.timer.waits.items()},
        "last_loss": float(our_training.timer.losses[-1]),
    }
    train_config = our_training.config.train
    # The counter sees neither what is computed twice nor what is compiled.
    if not train_config.gradient_checkpointing and train_config.compile == "none":
        flops = our_training.count_flops()
        utilisation = devices.compute_utilisation(flops, step_s, case.is_half)
        record |= {"flops": flops, "utilisation": utilisation}
    del our_training
    if case.peer:
        record["diffusers"] = measure_peer(case, size, device, num_timed)
        record["ratio"] = round(record["diffusers"]["step_s"] / step_s, 3)
    return record


def measure_peer(
    case: TrainingCase, size: ModelSize, device: torch.device, num_timed: int
) -> dict[str, Any]:
    """diffusers' script: the same model, images and batch, on the same device."""
    devices.free_memory(device)
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temp_folder:
        for folder in ("photos", "others"):
            (Path(temp_folder) / folder).mkdir()
            for photograph in make_noise_photographs(4, size.side_px):
                photograph.image.save(Path(temp_folder) / folder / photograph.path.name)
        path_overrides = (
            f"subject.photos={temp_folder}/photos",
            f"prior.folder={temp_folder}/others",
        )
        config = make_config(size, device.type == "cuda", 1, (*case.settings, *path_overrides))
        peer_loop = PlainLoop(
            config,
            "",
            make_random_components(size, device),
            mixed_precision="bf16" if case.is_half else "no",
        )
        peer_loop.run_steps(WARMUP_STEPS)
        devices.reset_peak(device)
        step_s = devices.time_work(lambda: peer_loop.run_steps(1), device, num_timed)
    return {"step_s": round(step_s, 5), **devices.read_peak(device)}


def check_bit_equal_repeats(size: ModelSize, device: torch.device) -> dict[str, Any]:
    """Whether the same steps give the same weights, bit for bit, twice."""
    record: dict[str, Any] = {}
    for case in CASES[:3]:
        result_hashes = set()
        for _ in range(2):
            devices.free_memory(device)
            our_training = OurTraining(case, size, device, 1)
            our_training.run()
            result_hashes.add(our_training.hash_result())
            del our_training
        record[case.name] = "equal" if len(result_hashes) == 1 else "not equal"
    return record
