"""Builds an image with buildah, without a container engine and without a registry of images.

The base is either what BASE names (a tag or, better, a digest) or, without it, a small Debian with
Python 3.11 that debootstrap makes; that base is kept for the rest of the month. pip in the build
gets the settings of the pip that calls: they are a build secret and stay out of the image. What
they name on this machine's disk (certificates, folders of wheels) is mounted while it builds.
"""

import argparse
import ast
import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
# What the Dockerfiles take from their base: `python` with venv, and certificates for pip. apt sets
# them up in their order, which debootstrap does not.
INSTALL = """
apt-get update
apt-get install --yes --no-install-recommends ca-certificates python3.11 python3.11-venv
ln -s python3.11 /usr/bin/python
apt-get clean
rm -rf /var/lib/apt/lists/* /usr/share/doc /usr/share/man
"""


def parse_pip_settings(listing: str) -> dict[str, str]:
    """The settings that `pip config list` prints, for every pip command, by option name.

    What comes from environment variables goes before what comes from files, as in pip itself.
    Sections of single commands are left out, but for `install`.
    """
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in listing.splitlines():
            if match := re.fullmatch(rf"{section}\.([\w-]+)=(.+)", line.strip()):
                settings[match.group(1)] = str(ast.literal_eval(match.group(2)))
    return settings


def format_pip_settings(settings: dict[str, str]) -> str:
    """The settings as a pip.conf."""
    lines = [f"{name} = {' '.join(value.split())}" for name, value in sorted(settings.items())]
    return "\n".join(["[global]", *lines, ""])


def find_local_paths(settings: dict[str, str]) -> list[Path]:
    """Files and folders of this machine that the settings name, without those inside of others.

    Of an index on disk its parent folder: the files that it links to lie beside it.
    """
    paths = set()
    for name, value in settings.items():
        for word in value.split():
            path = Path(unquote(urlsplit(word).path) if word.startswith("file:") else word)
            if name.endswith("index-url"):
                path = path.parent
            if path.is_absolute() and len(path.parts) > 1 and path.exists():
                paths.add(path)
    return sorted(p for p in paths if not any(other in p.parents for other in paths))


def list_pip_settings() -> dict[str, str]:
    """The settings of the pip of the Python that runs this."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    return parse_pip_settings(subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout)  # fmt: skip


def run_buildah(*arguments: str | Path) -> str:
    """One buildah command; returns what it printed. Its errors go to ours.

    vfs works below any file system, and without rights to mount.
    """
    environment = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot", **os.environ}
    result = subprocess.run(
        ["buildah", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        raise SystemExit(f"buildah {arguments[0]} ended with exit code {result.returncode}")
    return result.stdout.strip()


def find_image(name: str) -> str:
    """The id of the image of a name in buildah's storage; empty if there is none."""
    return run_buildah("images", "--quiet", "--filter", f"reference={name}")


def make_base() -> str:
    """The name of a base image made by debootstrap, made anew with each month."""
    name = f"localhost/dreambooth-base:{SUITE}-{datetime.date.today():%Y-%m}"
    if find_image(name):
        return name
    with tempfile.TemporaryDirectory(prefix="dreambooth-base-", dir="/var/tmp") as folder:
        rootfs = Path(folder) / "rootfs"
        subprocess.run(
            ["debootstrap", "--variant=minbase", SUITE, rootfs], stdout=sys.stderr, check=True
        )
        container = run_buildah("from", "scratch")
        try:
            run_buildah("add", "--quiet", container, rootfs, "/")
            run_buildah("run", container, "--", "sh", "-ec", INSTALL)
            run_buildah("commit", "--quiet", container, name)
        finally:
            run_buildah("rm", container)
    return name


def build(kind: str, tag: str, base: str, build_args: Sequence[str]) -> None:
    """Build Dockerfile.KIND as `tag`. base: a name that the Dockerfile's FROM is given, or ''."""
    settings = list_pip_settings()
    volumes = [f"--volume={path}:{path}:ro" for path in find_local_paths(settings)]
    arguments = [f"--build-arg={text}" for text in build_args]
    if base:
        arguments.append(f"--build-arg=BASE={base}")
    previous = find_image(tag)
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as secret:
        secret.write(format_pip_settings(settings))
        secret.flush()
        folder = ROOT / "k8s" / "docker"
        run_buildah(
            "bud", "--quiet", f"--secret=id=pip,src={secret.name}", *volumes, *arguments,
            f"--ignorefile={folder / f'Dockerfile.{kind}.dockerignore'}",
            f"--file={folder / f'Dockerfile.{kind}'}", f"--tag={tag}", ROOT,
        )  # fmt: skip
    if previous and find_image(tag) != previous:
        # Without a name it would lie there for good, some gigabytes.
        run_buildah("rmi", previous)
    print(f"{tag} {find_image(tag)}")


def main() -> None:
    """Check what is needed, make the base where none is given, build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kind", choices=("cpu", "cuda"))
    parser.add_argument("--tag", required=True, help="name of the image")
    parser.add_argument("--base", default="", help="image to build on; without it debootstrap's")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    for tool in ("buildah", *(() if options.base else ("debootstrap",))):
        if not shutil.which(tool):
            raise SystemExit(f"{tool!r} is not installed; install Debian's package {tool}")
    if not options.base and os.geteuid() != 0:
        raise SystemExit("debootstrap needs root; run as root, or name an image by BASE")
    build(options.kind, options.tag, options.base or make_base(), options.build_arg)


if __name__ == "__main__":
    main()
