from pathlib import Path

import pytest

from dreambooth_ray.errors import ConfigError
from dreambooth_ray.models.chat_template_checks import check_chat_template_files

TEMPLATE = "{%- for message in messages %}{{- message.content }}{%- endfor %}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "chat_template.jinja is empty"),
        (TEMPLATE[:-2], "chat_template.jinja is cut off"),
        (TEMPLATE[:-12], "chat_template.jinja is cut off"),
    ],
)
def test_a_template_that_was_cut_off_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_text(TEMPLATE)
    check_chat_template_files(tmp_path)
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        check_chat_template_files(tmp_path)


def test_one_is_found_in_the_settings_too_or_missed(tmp_path: Path) -> None:
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"chat_template": "{{ messages }}"}')
    check_chat_template_files(tmp_path)
    settings.write_text("{}")
    with pytest.raises(ConfigError, match="has no chat template"):
        check_chat_template_files(tmp_path)
