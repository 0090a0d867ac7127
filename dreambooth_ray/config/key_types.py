"""What a key of the configuration takes: text, numbers, lists or mappings."""

import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

_WORDS = {"true": True, "false": False, "null": None}
_WHOLE = re.compile(r"[+-]?\d{1,100}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class KeyType:
    """An annotation of pydantic's, as what people write for it is read."""

    def __init__(self, annotation: Any) -> None:
        self.members = list(_list_union_members(annotation))

    @property
    def is_optional(self) -> bool:
        """Whether null is a value of it."""
        return type(None) in self.members

    @property
    def reads_as_text(self) -> bool:
        """Whether a scalar is taken as it is written."""
        return any(
            union_member is str
            or (
                get_origin(union_member) is Literal
                and all(isinstance(a, str) for a in get_args(union_member))
            )
            for union_member in self.members
        )

    @property
    def reads_as_number(self) -> bool:
        """Whether a scalar is a number or true or false."""
        return any(
            union_member in (int, float, bool) or get_origin(union_member) is Literal
            for union_member in self.members
        )

    def takes_collection(self, bracket: str) -> bool:
        """Whether it may be a list, for "[", or a mapping, for "{"."""
        collection_types = (tuple, list) if bracket == "[" else (dict,)
        return Any in self.members or any(
            get_origin(union_member) in collection_types
            or (bracket == "{" and _is_section(union_member))
            for union_member in self.members
        )

    def item(self, index: int) -> "KeyType":
        """Of an item of a list."""
        for union_member in self.members:
            if get_origin(union_member) in (tuple, list):
                item_types = [a for a in get_args(union_member) if a is not Ellipsis]
                return KeyType(item_types[min(index, len(item_types) - 1)])
        return KeyType(Any)

    def child(self, name: str) -> "KeyType":
        """Of a key of a mapping; of one that is not known, anything."""
        for union_member in self.members:
            if _is_section(union_member):
                field = union_member.model_fields.get(name)
                return KeyType(field.annotation if field else Any)
        return KeyType(self.value_annotation())

    def value_annotation(self) -> Any:
        """Of the values of a mapping whose keys are the user's."""
        return next((get_args(m)[1] for m in self.members if get_origin(m) is dict), Any)

    def section(self) -> type[BaseModel] | None:
        """The section it may be."""
        return next(
            (union_member for union_member in self.members if _is_section(union_member)), None
        )

    def is_free_mapping(self) -> bool:
        """Whether its keys are the user's."""
        return any(get_origin(union_member) is dict for union_member in self.members)

    def read_scalar(self, text: str) -> Any:
        """A number where it is one; else the text, for pydantic to take or refuse."""
        if Any in self.members:
            if text in _WORDS:
                return _WORDS[text]
            # "007" is rather a name, or a secret.
            return int(text) if _WHOLE.fullmatch(text) and str(int(text)) == text else text
        if bool in self.members and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if _WHOLE.fullmatch(text):
            return int(text)
        return float(text) if _NUMBER.fullmatch(text) else text


def _list_union_members(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        yield from _list_union_members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for union_member in get_args(annotation):
            yield from _list_union_members(union_member)
    else:
        yield annotation


def _is_section(union_member: Any) -> bool:
    return isinstance(union_member, type) and issubclass(union_member, BaseModel)
