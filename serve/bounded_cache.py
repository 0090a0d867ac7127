"""A dictionary that forgets what was unused for longest."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class BoundedCache(Generic[_Value]):
    """Values by name; together they weigh `max_weight` at most. Not thread-safe."""

    def __init__(self, max_weight: int, weigh: Callable[[_Value], int] = lambda _: 1) -> None:
        self._max_weight, self._weigh = max_weight, weigh
        self._values: OrderedDict[str, _Value] = OrderedDict()
        self.weight = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str) -> _Value | None:
        """The value, which is used by that; None without one."""
        cached_value = self._values.get(name)
        if cached_value is not None:
            self._values.move_to_end(name)
        return cached_value

    def put(self, name: str, value: _Value) -> None:
        """Keep a value; it may itself be too heavy to be kept."""
        self.drop(name)
        self._values[name] = value
        self.weight += self._weigh(value)
        while self.weight > self._max_weight:
            self.drop(next(iter(self._values)))

    def drop(self, name: str) -> None:
        """Forget a value, if it is there."""
        dropped_value = self._values.pop(name, None)
        if dropped_value is not None:
            self.weight -= self._weigh(dropped_value)
