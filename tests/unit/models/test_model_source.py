import os
import shutil
import subprocess
import sys
from pathlib import Path

from dreambooth_ray.models.model_directory import model_directory
from tests.hub_server import STRANGER, HubServer

UNET = "unet/diffusion_pytorch_model.safetensors"
ID = "someone/tiny"


def test_a_directory_goes_before_the_hub(hub: HubServer, toy_model: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_model, tmp_path / ID)
    assert model_directory(ID) == tmp_path / ID
    assert not hub.requests


_FETCH = """
import sys
from dreambooth_ray.models import model_directory, model_source
sys.stdin.readline()
print(model_directory.model_directory(sys.argv[1]))
"""


def test_two_processes_of_a_host_download_it_once(
    hub: HubServer, published_files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(ID, published_files)
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _FETCH, ID], env=environment, text=True, cwd=tmp_path,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120) for process in processes]
    assert len({out for out, _ in answers}) == 1, answers
    assert all(process.returncode == 0 for process in processes), answers
    header_bytes = 2**18
    assert hub.bytes_sent[UNET] <= len(published_files[UNET]) + 3 * header_bytes
    assert hub.bytes_sent[UNET] >= len(published_files[UNET])


def test_refusals_of_every_verb_come_before_anything_starts(
    hub: HubServer, published_files: dict[str, bytes], photos: Path, tmp_path: Path
) -> None:
    hub.add(ID, published_files, "gated")
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_TOKEN": STRANGER}
    for verb in (
        ["train", "toy-robot.yaml", f"subject.photos={photos}", f"model.uri={ID}"],
        ["preflight", "toy-robot.yaml", f"subject.photos={photos}", f"model.uri={ID}"],
        ["priors", "make", "toy-robot.yaml", f"subject.photos={photos}", f"model.uri={ID}"],
        ["serve", f"models.one={ID}"],
        ["generate", ID, "--prompt", "a robot"],
        ["evaluate", ID, "--photos", str(photos)],
        ["export", ID, "--out", "x.safetensors", "--format", "single-file"],
        ["identifier", ID, "--class-noun", "robot"],
    ):
        done = subprocess.run(
            [Path(sys.executable).with_name("dreambooth"), *verb], env=environment, cwd=tmp_path,
            text=True, capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        said = done.stderr + done.stdout
        assert done.returncode == 2, (verb, said)
        assert "is gated: accept its terms at" in said, (verb, said)
        assert STRANGER not in said
