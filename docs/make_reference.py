"""Writes the pages that are made from code; `--check` exits 1 if one is stale.

docs/reference/*.md come from the configuration's fields, the verbs, the OpenAPI document, the
metrics and the names of files. The handbooks beside the code (serve, cluster, k8s) are copied
into docs/how-to/, with links that work in the site.
"""

import argparse
import sys
from pathlib import Path

from pages.command_line import command_line
from pages.configuration import configuration
from pages.handbooks import HANDBOOKS, handbook
from pages.http_api import http_api
from pages.markdown import DOCS, ROOT
from pages.metrics import metrics
from pages.run_files import run_files


def all_pages() -> dict[Path, str]:
    """What every page that is made should hold."""
    made = {
        "reference/configuration.md": configuration(),
        "reference/command-line.md": command_line(),
        "reference/http-api.md": http_api(),
        "reference/metrics.md": metrics(),
        "reference/run-files.md": run_files(),
    }
    made |= {target: handbook(source, target) for source, target in HANDBOOKS.items()}
    return {DOCS / name: text for name, text in made.items()}


def main() -> None:
    """Write all pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="exit 1 if a page is stale")
    is_check = parser.parse_args().check
    stale = {
        path: text
        for path, text in all_pages().items()
        if not path.is_file() or path.read_text() != text
    }
    for path, text in stale.items():
        name = path.relative_to(ROOT)
        if is_check:
            print(f"{name} is stale; run python docs/make_reference.py", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {name}")
    if stale and is_check:
        sys.exit(1)


if __name__ == "__main__":
    main()
