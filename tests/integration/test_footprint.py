"""The estimate of a step's memory beside what a step really takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_ray.config.load import load_config
from dreambooth_ray.memory.training_memory import estimate_training_footprint

# One process, one thread, two steps: weights, gradients, AdamW and activations at their height.
STEP = """
import json, sys
from pathlib import Path
import psutil, torch
from torch.optim import AdamW
from dreambooth_ray.config.load import load_config
from dreambooth_ray.models.components import load_components
from dreambooth_ray.memory.training_memory import count_worker_batch_images
from dreambooth_ray.memory.fake_step import count_step
from dreambooth_ray.models.trainable_params import apply_train_method

torch.set_num_threads(1)
overrides, directory = json.loads(sys.argv[1]), Path(sys.argv[2])
config = load_config("toy-robot", overrides)
batch = count_worker_batch_images(config)
count_step(config, directory, batch)  # loads every library that the step needs, and no weight
before = psutil.Process().memory_info().rss
parts = load_components(directory)
apply_train_method(config, parts)
weights = [p for m in (parts.unet, parts.text_encoder) for p in m.parameters() if p.requires_grad]
optimizer = AdamW(weights, lr=1e-6)
side = config.train.side_px // parts.latent_factor
ids = torch.zeros(batch, parts.text_encoder.config.max_position_embeddings, dtype=torch.int64)
for _ in range(2):
    hidden = parts.text_encoder(ids).last_hidden_state
    latents = torch.randn(batch, parts.unet.config.in_channels, side, side)
    parts.unet(latents, torch.zeros(batch), hidden).sample.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
# Not ru_maxrss: it survives exec, and would be the peak of whoever started this.
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) * 1024 - before)
"""


@pytest.mark.fault
@pytest.mark.parametrize(("method", "batch"), [("full", 24), ("lora", 24)])
def test_the_estimate_is_near_what_a_step_takes(
    toy_model: Path, method: str, batch: int, tmp_path: Path
) -> None:
    overrides = [
        f"subject.photos={tmp_path}",
        "cluster.workers=1",
        f"train.batch_size={batch}",
        f"train.method={method}",
    ]
    estimate = estimate_training_footprint(
        load_config("toy-robot", overrides), toy_model
    ).total_bytes
    done = subprocess.run(
        [sys.executable, "-c", STEP, json.dumps(overrides), str(toy_model)],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = int(done.stdout.split()[-1])
    print(f"{method}: estimated {estimate / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert 0.75 * estimate <= measured <= 1.35 * estimate
