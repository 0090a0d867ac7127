"""Ten faults planted in what a person would submit, each found by the command itself."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.conftest import DREAMBOOTH
from tests.ray_head import TOKEN, Server, ray_head

pytestmark = pytest.mark.fault

# name of the fault: words for the command line, what the cluster has, its entry, the key to mend
FAULTS: dict[str, tuple[list[str], dict[str, object], dict[str, str], str]] = {
    "no photographs": (["subject.photos=/nowhere"], {}, {}, "subject.photos"),
    "a damaged photograph": (["subject.photos=@damaged"], {}, {}, "subject.photos"),
    "no model": (["model.uri=/nowhere"], {}, {}, "model.uri"),
    "a side the model can't draw": (["train.resolution=60"], {}, {}, "train.resolution"),
    "no layer to adapt": (
        ["train.method=lora", "train.lora.target_modules=[nothing]"], {}, {},
        "train.lora.target_modules",
    ),
    "storage that takes nothing": (["storage.uri=/proc/nowhere"], {}, {}, "storage.uri"),
    "too few GPUs": (["cluster.gpus=true"], {"gpus": {"GPU": 1.0}}, {}, "cluster.workers"),
    "too little memory": ([], {"memory": 64 * 2**20}, {}, "train.method"),
    "another Ray": ([], {"ray": "2.9.0"}, {}, "image"),
    "a refused token": ([], {}, {"token": "wrong"}, "token"),
}  # fmt: skip


def write_clusters_file(head: Server, tmp_path: Path, changes: dict[str, str]) -> Path:
    file = tmp_path / "clusters.yaml"
    about = {"address": f"http://127.0.0.1:{head.server_port}", "token": TOKEN, **changes}
    file.write_text(json.dumps({"mine": about}))  # JSON is YAML
    return file


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_by_its_key(fault: str, photos: Path, tmp_path: Path) -> None:
    words, has, changes, key = FAULTS[fault]
    damaged = tmp_path / "damaged"
    shutil.copytree(photos, damaged)
    first = sorted(damaged.glob("*.png"))[0]
    first.write_bytes(first.read_bytes()[:300])
    words = [word.replace("@damaged", str(damaged)) for word in words]
    overrides = [f"subject.photos={photos}", f"storage.uri={tmp_path / 'storage'}", *words]
    with ray_head() as head:
        for name, value in has.items():
            setattr(head, name, value)
        clusters = [
            "--cluster",
            "mine",
            "--clusters",
            str(write_clusters_file(head, tmp_path, changes)),
        ]
        start_s = time.monotonic()
        result = subprocess.run(
            [DREAMBOOTH, "preflight", "toy-robot", *overrides, *clusters],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        print(f"{fault}: {time.monotonic() - start_s:.1f} s")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert [line.split(": ")[1] for line in errors] == [key, "preflight"], result.stderr
    assert not list((tmp_path / "storage").glob("runs/*"))
