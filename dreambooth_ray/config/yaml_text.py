"""YAML as people write it, read by the types of the keys: what is text stays the text it is.

YAML alone takes 1234 for a number, `no` for false, 2024-01-01 for a date and 1:30 for ninety, and
of a key that is there twice it takes the last without a word.
"""

import codecs
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from dreambooth_ray.config.key_types import KeyType
from dreambooth_ray.errors import ConfigError

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
_KEY_OF_LINE = re.compile(rb"^[\s\-{]*([\w.\-]+)\s*:")
# Of what is read, for each value that is written; a small file may always have the second.
_MOST_VALUES_EACH, _MOST_VALUES_SMALL = 100, 100_000
_NULL_TAG = "tag:yaml.org,2002:null"


def read_text_file(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    raises: ConfigError naming file, line and key for another encoding; OSError
    """
    file_bytes = path.read_bytes()
    for byte_order_mark, encoding in _BYTE_ORDER_MARKS.items():
        if file_bytes.startswith(byte_order_mark):
            raise ConfigError(f"{path} line 1 is {encoding}; save the file as UTF-8")
    try:
        return file_bytes.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        lines_before_error = file_bytes[: error.start].splitlines(keepends=True) or [b""]
        line_number = len(lines_before_error) + lines_before_error[-1].endswith((b"\n", b"\r"))
        line = file_bytes.splitlines()[line_number - 1]
        key_match = _KEY_OF_LINE.match(line)
        key = f", key {key_match[1].decode()}," if key_match else ""
        raise ConfigError(
            f"{path} line {line_number}{key} is not UTF-8 (byte 0x{file_bytes[error.start]:02x}); "
            "save the file as UTF-8"
        ) from error


def parse_yaml(text: str, origin: str, annotation: Any) -> Any:
    """A document's values by an annotation's types, for pydantic to validate; None if it is empty.

    raises: ConfigError naming the origin, with line and key
    """
    try:
        node = yaml.SafeLoader(text.removeprefix("\ufeff")).get_single_node()
        if node is None:
            return None
        _refuse_duplicates(node, origin, "", set())
        _refuse_multiplying_aliases(node, origin)
        return _read_node(node, KeyType(annotation))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{origin}{_explain_yaml_error(error, text)}; correct the file"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{origin} is nested too deeply; correct the file") from error


def _explain_yaml_error(error: Exception, text: str) -> str:
    """Where a document is no YAML and why, without its text: that may be a secret."""
    if isinstance(error, ReaderError):
        line_number = text.count("\n", 0, error.position) + 1
        encoding_hint = "; it may be UTF-16, save it as UTF-8" if "\0" in text else ""
        return (
            f" line {line_number}: the character U+{error.character:04X} can't be "
            f"there{encoding_hint}"
        )
    problem_mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if problem_mark is None:
        yaml_error_reason = getattr(error, "reason", None) or type(error).__name__
        return f" is not valid YAML: {yaml_error_reason}"
    return (
        f" line {problem_mark.line + 1}, column {problem_mark.column + 1}: is not valid YAML: "
        f"{problem}"
    )


def parse_value(text: str, annotation: Any) -> Any:
    """A value of the command line by its key's type; a list or mapping is YAML's [a, b], {a: 1}.

    raises: ValueError saying what is wrong with a list or mapping
    """
    key_type = KeyType(annotation)
    stripped_text = text.strip()
    if key_type.is_optional and stripped_text in ("", "null"):
        return None
    if stripped_text[:1] in "[{" and stripped_text and key_type.takes_collection(stripped_text[0]):
        try:
            return parse_yaml(stripped_text, "it", annotation)
        except ConfigError as error:
            if not key_type.reads_as_text:
                raise ValueError(str(error)) from error
    if key_type.reads_as_text:
        return _unquote(text)
    return key_type.read_scalar(stripped_text)


def _unquote(text: str) -> str:
    """Without quotes around the whole of it, which shells do not take away inside others."""
    stripped_text = text.strip()
    if (
        len(stripped_text) < 2
        or stripped_text[0] != stripped_text[-1]
        or stripped_text[0] not in "'\""
    ):
        return text
    try:
        unquoted_value = yaml.safe_load(stripped_text)
    except yaml.YAMLError:
        return text
    return unquoted_value if isinstance(unquoted_value, str) else text


def _refuse_duplicates(node: Node, origin: str, at: str, seen_nodes: set[int]) -> None:
    if id(node) in seen_nodes:
        return
    seen_nodes.add(id(node))
    if isinstance(node, SequenceNode):
        for index, item_node in enumerate(node.value):
            _refuse_duplicates(item_node, origin, f"{at}{index}.", seen_nodes)
    if not isinstance(node, MappingNode):
        return
    lines_by_key: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line_number = str(key_node.value), key_node.start_mark.line + 1
        if key in lines_by_key and key != "<<":
            raise ConfigError(
                f"{origin} line {line_number}: key {at}{key} is there twice, first in line "
                f"{lines_by_key[key]}; keep one"
            )
        lines_by_key[key] = line_number
        _refuse_duplicates(value_node, origin, f"{at}{key}.", seen_nodes)


def _refuse_multiplying_aliases(node: Node, origin: str) -> None:
    """Lists of aliases of lists of aliases are a short text, and no memory holds what it says."""
    value_counts_by_node: dict[int, int] = {}
    num_values = _count_expanded_values(node, value_counts_by_node)
    if num_values > max(_MOST_VALUES_SMALL, _MOST_VALUES_EACH * len(value_counts_by_node)):
        raise ConfigError(
            f"{origin}: its aliases (*name) stand for {Decimal(num_values):.1e} values in the "
            f"place of {len(value_counts_by_node)}; write out what is meant"
        )


def _count_expanded_values(node: Node, value_counts_by_node: dict[int, int]) -> int:
    """Values in a node, what aliases stand for counted each time.

    value_counts_by_node: of nodes seen before, by their ids
    """
    if id(node) not in value_counts_by_node:
        child_entries = () if isinstance(node, ScalarNode) else node.value
        child_nodes = [
            part for item in child_entries for part in (item if isinstance(item, tuple) else [item])
        ]
        value_counts_by_node[id(node)] = 1 + sum(
            _count_expanded_values(value, value_counts_by_node) for value in child_nodes
        )
    return value_counts_by_node[id(node)]


def _read_node(node: Node, key_type: KeyType) -> Any:
    if isinstance(node, ScalarNode):
        is_unquoted = node.style is None
        if (
            is_unquoted
            and node.tag == _NULL_TAG
            and (key_type.is_optional or not key_type.reads_as_text)
        ):
            return None
        if key_type.reads_as_text:
            return node.value
        if is_unquoted and key_type.reads_as_number:
            return key_type.read_scalar(node.value)
    elif isinstance(node, SequenceNode) and key_type.takes_collection("["):
        return [
            _read_node(item_node, key_type.item(index))
            for index, item_node in enumerate(node.value)
        ]
    elif isinstance(node, MappingNode) and key_type.takes_collection("{"):
        yaml.SafeLoader("").flatten_mapping(node)
        return {
            str(key.value): _read_node(value, key_type.child(str(key.value)))
            for key, value in node.value
        }
    return yaml.SafeLoader("").construct_document(node)
