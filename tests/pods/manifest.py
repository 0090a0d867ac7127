"""What a pod's manifest says, as values: quantities, environment, names of services."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Tree = dict[str, Any]
_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6,
          "G": 10**9, "T": 10**12, "m": 1e-3}  # fmt: skip


def parse_quantity(text: str) -> float:
    """A quantity of Kubernetes, such as 500m or 2Gi, in cores or bytes. raises: ValueError"""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(\w*)", str(text))
    if match is None or match.group(2) not in _UNITS:
        raise ValueError(f"{text!r} is no quantity")
    return float(match.group(1)) * _UNITS[match.group(2)]


@dataclass(frozen=True)
class Store:
    """ConfigMaps and Secrets by name, their entries as text."""

    config_maps: Mapping[str, Mapping[str, str]]
    secrets: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Identity:
    """What a pod knows of itself."""

    name: str
    namespace: str
    address: str
    labels: Mapping[str, str]

    def field(self, path: str) -> str:
        """The value of a fieldRef. raises: KeyError"""
        if match := re.fullmatch(r"metadata\.labels\['(.+)'\]", path):
            return self.labels[match.group(1)]
        return {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "status.podIP": self.address,
        }[path]


def read_environment(container: Tree, identity: Identity, store: Store) -> dict[str, str]:
    """A container's variables: envFrom, then env, with $(NAME) filled in.

    raises: KeyError for a name that is not there and not optional
    """
    variables: dict[str, str] = {}
    for entry in container.get("envFrom", []):
        kind = "secretRef" if "secretRef" in entry else "configMapRef"
        reference = entry[kind]
        entries = store.secrets if kind == "secretRef" else store.config_maps
        if reference["name"] in entries or not reference.get("optional"):
            variables |= entries[reference["name"]]
    for entry in container.get("env", []):
        source = entry.get("valueFrom")
        value = _read_source(source, identity, store) if source else entry.get("value", "")
        if value is not None:
            variables[entry["name"]] = expand(value, variables)
    return variables


def _read_source(source: Tree, identity: Identity, store: Store) -> str | None:
    if "fieldRef" in source:
        return identity.field(source["fieldRef"]["fieldPath"])
    kind = "secretKeyRef" if "secretKeyRef" in source else "configMapKeyRef"
    reference = source[kind]
    entries = store.secrets if kind == "secretKeyRef" else store.config_maps
    entry = entries.get(reference["name"], {})
    if reference["key"] not in entry and reference.get("optional"):
        return None
    return entry[reference["key"]]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """$(NAME) becomes the variable's value; of an unknown name it stays as it is."""
    replace: Callable[[re.Match[str]], str] = lambda m: variables.get(m.group(1), m.group(0))  # noqa: E731
    return re.sub(r"\$\((\w+)\)", replace, text)


@dataclass(frozen=True)
class Service:
    """A name for pods by their labels. is_for_all: those too that are not ready"""

    name: str
    selector: Mapping[str, str]
    is_for_all: bool = False

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether pods with these labels are behind it."""
        return all(labels.get(key) == value for key, value in self.selector.items())
