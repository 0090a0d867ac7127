"""Which themes there are; imports nothing, so that --help can show them."""

# Name of a theme: its module, and one line about it.
THEMES: dict[str, tuple[str, str]] = {
    "sample": ("sampling", "The engine against diffusers' pipeline, one thread."),
}
