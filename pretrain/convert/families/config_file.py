"""A config.json of somebody else's while it is read: each value with its type checked, all problems collected.

Defaults are those that transformers takes where a key is missing.
"""

import math
from collections.abc import Sequence
from typing import Any

_MISSING = object()
LARGEST = 1 << 24  # no vocabulary, width, depth or context of a model comes near


class ConfigFile:
    """`problems` keep the file from being imported; `notes` are what a person should know of it."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.problems: list[str] = []
        self.notes: list[str] = []

    def integer(self, key: str, default: Any = _MISSING) -> int:
        """A whole number above 0 that overflows no size of torch's. 1 stands for one that is missing or wrong."""
        value = self._value(key, default)
        if type(value) is int and 0 < value <= LARGEST:
            return value
        self._wrong(key, value, f"a whole number from 1 to {LARGEST}")
        return 1

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A finite number. 1 stands for one that is missing or wrong."""
        value = self._value(key, default)
        if is_number(value):
            return float(value)
        self._wrong(key, value, "a number")
        return 1.0

    def truth(self, key: str, default: bool) -> bool:
        """True or false; null counts as missing."""
        value = self._value(key, default)
        if isinstance(value, bool):
            return value
        self._wrong(key, value, "true or false")
        return default

    def only(self, key: str, allowed: Sequence[Any], default: Any, ours: str) -> Any:
        """One of the values that our model has a place for; `ours` says what it has."""
        value = self._value(key, default)
        if any(type(value) is type(one) and value == one for one in allowed):
            return value
        expected = " or ".join(map(shown, allowed))
        self.problems.append(f"{key}={shown(value)}: {ours} ({expected} only)")
        return default

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def _wrong(self, key: str, value: Any, expected: str) -> None:
        if value is _MISSING:
            self.problems.append(f"{key} is missing")
        else:
            self.problems.append(f"{key}={shown(value)} is not {expected}")


def is_number(value: Any) -> bool:
    """A finite int or float; JSON may hold NaN, and a number of any length."""
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def shown(value: Any) -> str:
    """As JSON writes it, cut to a line."""
    text = (
        {True: "true", False: "false", None: "null"}[value]
        if value is None or value is True or value is False
        else repr(value)
    )
    return text if len(text) <= 60 else f"{text[:57]}…"
