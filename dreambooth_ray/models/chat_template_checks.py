"""Whether a tokenizer has a chat template, and whole; by its files alone."""

from pathlib import Path

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.part_configs import read_json


def check_chat_template_files(folder: Path) -> None:
    """Of a tokenizer; raises: ConfigError naming its folder or the file"""
    template_path = folder / "chat_template.jinja"
    if template_path.is_file():
        _refuse_truncated_template(template_path)
    elif "chat_template" not in read_json(folder / "tokenizer_config.json"):
        raise ConfigError(
            f"{folder} has no chat template, in tokenizer_config.json or chat_template.jinja; "
            "copy it again"
        )


def _refuse_truncated_template(path: Path) -> None:
    """A template that was cut off is empty or leaves a block open."""
    from jinja2 import Environment, TemplateSyntaxError  # noqa: PLC0415  where there is one alone

    try:
        template_text = path.read_text(encoding="utf-8")
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template_text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read ({error}); copy it again") from error
    except TemplateSyntaxError as error:
        # Marks of transformers' own are unknown to it.
        if "end of" in str(error):
            raise ConfigError(f"{path} is cut off ({error.message}); copy it again") from error
    else:
        if not template_text.strip():
            raise ConfigError(f"{path} is empty; copy it again")
