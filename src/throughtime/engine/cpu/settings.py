"""What a cell's step may depend on beside its tensors, in a form that can be compared with what it was."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Hashable
from typing import Any

PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Same:
    """Stands for an object that is compared by being the same one; does not keep it alive."""

    def __init__(self, value: Any) -> None:
        self._name = id(value)
        self._value: Callable[[], Any]
        try:
            self._value = weakref.ref(value)
        except TypeError:  # some built-in kinds cannot be referred to so; they are kept, then
            self._value = lambda: value

    def __eq__(self, other: object) -> bool:
        mine = self._value()
        return isinstance(other, Same) and mine is not None and mine is other._value()

    def __hash__(self) -> int:
        return hash(self._name)


def watched(value: Any) -> Hashable:
    """Numbers, text, collections and data classes of such by what they hold, anything else by which object it is.

    >>> watched({"pace": [0.1, 0.2]}) == watched({"pace": [0.1, 0.2]}) != watched({"pace": [0.1, 0.3]})
    True
    >>> watched(len) == watched(len) != watched(max)
    True
    """
    if isinstance(value, PLAIN):
        return (type(value), value)
    if isinstance(value, (list, tuple)):
        return (type(value), *(watched(part) for part in value))
    if isinstance(value, dict):
        return (type(value), *((watched(name), watched(part)) for name, part in value.items()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = (watched(getattr(value, field.name)) for field in dataclasses.fields(value))
        return (Same(type(value)), *parts)
    return Same(value)
