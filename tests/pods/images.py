"""Root file systems of images that buildah has, for containers of tests."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from k8s.docker.build import find_image, make_base, run_buildah

# The image that tests run; it is named by who has built it: `make image` does.
IMAGE_VARIABLE = "DREAMBOOTH_IMAGE"
TOOLS = ("buildah", "runc", "ip")


def find_hindrance() -> str:
    """Why no pods can be run here; empty if they can."""
    if os.geteuid() != 0:
        return "pods need root"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"pods need {', '.join(missing)}"
    return "" if os.environ.get(IMAGE_VARIABLE) else f"{IMAGE_VARIABLE} names no image"


@contextmanager
def mount_image(name: str) -> Iterator[Path]:
    """A copy of an image's files, which goes when the block ends."""
    container = run_buildah("from", "--pull-never", name)
    try:
        yield Path(run_buildah("mount", container))
    finally:
        run_buildah("umount", container)
        run_buildah("rm", container)


@contextmanager
def mount_servers(weed: Path) -> Iterator[Path]:
    """A Debian with redis-server and SeaweedFS's `weed`: for the images of others, which lie in
    registries. Debian's Redis is 7.0; the commands that Ray uses are the same in 7.4.
    """
    name = make_base().replace("dreambooth-base", "dreambooth-servers")
    if not find_image(name):
        with tempfile.TemporaryDirectory() as folder:
            dockerfile = Path(folder) / "Dockerfile"
            dockerfile.write_text(
                f"FROM {make_base()}\nRUN apt-get update && apt-get install --yes"
                " --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/*\n"
            )
            run_buildah("bud", "--quiet", f"--file={dockerfile}", f"--tag={name}", folder)
    with mount_image(name) as rootfs:
        shutil.copy(weed, rootfs / "usr/bin/weed")
        yield rootfs


def measure_bytes(folder: Path) -> int:
    """What a folder's files take, each once."""
    words = subprocess.run(
        ["du", "--summarize", "--bytes", "--one-file-system", folder],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return int(words[0])
