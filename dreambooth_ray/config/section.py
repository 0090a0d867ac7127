"""What every section of the configuration is made of."""

import os.path
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

# Names of runs, models and subjects: what may stand before an "@", in a URL and in a file name.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def expand_home(path: str) -> str:
    """A path or URI with ~ or ~user at its start made whole; others are as they are."""
    return os.path.expanduser(path)  # noqa: PTH111  a Path would fold the slashes of a URI


def check_placeholders(template: str, names: tuple[str, ...] = ("identifier", "class_noun")) -> str:
    """raises: ValueError for a {word} that nothing would be put in for"""
    unknown_placeholders = [n for n in re.findall(r"\{(\w+)\}", template) if n not in names]
    if unknown_placeholders:
        known_placeholders_text = ", ".join(f"{{{name}}}" for name in names)
        raise ValueError(
            f"nothing is put in for {{{unknown_placeholders[0]}}}; there are "
            f"{known_placeholders_text}"
        )
    return template


# A prompt in which {identifier} and {class_noun} are filled in.
Template = Annotated[Text, AfterValidator(check_placeholders)]
# A file, folder or URI; a relative one is relative to the working directory.
PathText = Annotated[Text, AfterValidator(expand_home)]


class Section(BaseModel):
    """Base of all sections."""

    # A number that is none would pass through every bound that it is not compared with.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
