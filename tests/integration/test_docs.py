"""README and docs: size, links, and their commands and code, run as they stand there."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import DREAMBOOTH, kill_tree

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BESIDE_CODE = ["serve/README.md", "cluster/README.md", "k8s/README.md"]
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *BESIDE_CODE)
] + sorted(DOCS.rglob("*.md"))
MARK = "<!-- runnable -->\n"
BLOCK = re.compile(rf"({MARK})?```(\w*)\n(.*?)```", re.DOTALL)
MAX_WORDS, MAX_SENTENCE_WORDS = 900, 25
# Fewer steps than the tutorial's reader takes.
TOY_SIZE = "train.steps=6 prior.count=4 prior.num_inference_steps=3 sample.every=0"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> Iterator[str]:
    """Paragraphs and list items, without code, tables, images and headings."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for part in re.split(r"\n\s*\n|\n(?=- )", text):
        if not part.startswith(("    ", "|", "#")):
            yield part


def sentences(text: str) -> Iterator[str]:
    for part in prose(text):
        yield from re.split(r"(?<=[.!?])\s+(?=[^a-z])", part)


def blocks(path: Path) -> list[tuple[bool, str, str]]:
    """Code in order: whether it is marked runnable, its language, its text."""
    return [(bool(mark), kind, code) for mark, kind, code in BLOCK.findall(path.read_text())]


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= MAX_WORDS
    long = [s for s in sentences(text) if len(s.split()) > MAX_SENTENCE_WORDS]
    assert not long


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_local_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert link.startswith("http") or (path.parent / link).exists(), link


@pytest.mark.parametrize("path", sorted((DOCS / "contribute").glob("*.md")), ids=name_of)
def test_files_that_contributors_are_sent_to_are_there(path: Path) -> None:
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|html|js|md))`", path.read_text())
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r'"([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text())
    assert sorted(listed) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))


def test_pages_made_from_code_are_up_to_date() -> None:
    command = [sys.executable, "docs/make_reference.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def runnable_pages() -> list[Path]:
    pages = [p for p in sorted(DOCS.rglob("*.md")) if any(run for run, _, _ in blocks(p))]
    return [p for p in pages if p.name != "tutorial.md"]


@pytest.mark.parametrize("path", runnable_pages(), ids=name_of)
def test_marked_code_runs(path: Path, tmp_path: Path) -> None:
    code = "\n".join(text for run, _, text in blocks(path) if run)
    run([sys.executable, "-c", code], tmp_path)


@pytest.mark.fault
@pytest.mark.timeout(1500)
def test_the_tutorial_runs_from_beginning_to_end(tmp_path: Path) -> None:
    port = str(free_port())
    server: subprocess.Popen[str] | None = None
    printed: list[str] = []
    try:
        for marked, kind, text in blocks(DOCS / "tutorial.md"):
            code = text.replace("8000", port)
            if kind == "console" and code.startswith("dreambooth serve"):
                server = serve(tmp_path, port)
            elif kind == "console":
                code = re.sub(r"^(dreambooth train .*)$", rf"\1 {TOY_SIZE}", code, flags=re.M)
                printed.append(run(["bash", "-euc", code], tmp_path))
            elif marked:
                printed.append(run([sys.executable, "-c", code], tmp_path))
    finally:
        if server is not None:
            kill_tree(server)
    assert "brown checkered robot" in printed[0]
    assert "5 photographs, ok" in printed[1]
    assert printed[2] == printed[3] == f"{tmp_path / 'out' / 'runs' / 'robot'}\n"
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 5
    assert "'robot'" in printed[-1]
    assert (tmp_path / "snow.png").stat().st_size
    assert (tmp_path / "night.png").stat().st_size


def run(command: list[str], folder: Path) -> str:
    """What a command prints; it has to end well."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, text=True, capture_output=True,
        check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, f"{command[-1]}\n{done.stderr}"
    return done.stdout


def serve(folder: Path, port: str) -> "subprocess.Popen[str]":
    """`dreambooth serve`, once it is ready."""
    server = subprocess.Popen(
        [DREAMBOOTH, "serve", "--port", port],
        cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return server
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                kill_tree(server)
                pytest.fail("the endpoint is not ready")
            time.sleep(0.5)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
