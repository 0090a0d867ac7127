"""Of diffusers: where it writes down what a part was loaded from.

Private: the key _name_or_path of a part's configuration.
"""

from typing import Any


def name_source(part: Any, name: str) -> None:
    """Have a part's saved configuration name this as its source, not a folder of this machine."""
    part.register_to_config(_name_or_path=name)
