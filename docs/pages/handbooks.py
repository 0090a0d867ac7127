"""Handbooks that lie beside the code they are about, copied into the site."""

import os
import re

from pages.markdown import DOCS, MADE, ROOT, code

# Handbooks that lie beside the code they are about, and their pages in the site.
HANDBOOKS = {
    "serve/README.md": "how-to/endpoint.md",
    "cluster/README.md": "how-to/clusters.md",
    "k8s/README.md": "how-to/kubernetes.md",
}
# Files with a page of their own in the site.
PAGES = {
    **HANDBOOKS,
    "dreambooth_ray/config/serving.py": "reference/configuration.md",
    "dreambooth_ray/config/schema.py": "reference/configuration.md",
}


def handbook(source: str, target: str) -> str:
    """A copy of a handbook, with links that work in the site."""
    text = (ROOT / source).read_text()
    text = re.sub(r"^!\[[^\]]*\]\((?!http)[^)]+\)\n+", "", text, flags=re.MULTILINE)

    def linked(match: re.Match[str]) -> str:
        words, link = match.groups()
        if link.startswith(("http", "#")):
            return match.group(0)
        file, _, anchor = link.partition("#")
        path = os.path.relpath((ROOT / source).parent / file, ROOT)
        if path not in PAGES:
            return code(path)
        to = os.path.relpath(DOCS / PAGES[path], (DOCS / target).parent)
        return f"[{words}]({to}{'#' + anchor if anchor else ''})"

    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", linked, text)
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{MADE.format(source=source)}\n{rest}"
