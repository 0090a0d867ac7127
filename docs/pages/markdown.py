"""What every page that is made has in common."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MADE = "<!-- Made by docs/make_reference.py from {source}. Change that, then run the script. -->"


def cell(text: object) -> str:
    """Text in a cell of a table."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def code(text: object) -> str:
    """Code in a cell of a table."""
    return f"`{text}`".replace("|", "\\|")


def table(*rows: tuple[str, ...]) -> str:
    """A table; the first row is its head."""
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(title: str, source: str, *parts: str) -> str:
    """A whole page."""
    return "\n\n".join([f"# {title}", MADE.format(source=source), *parts]) + "\n"
