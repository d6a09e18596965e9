"""Reading an untrusted config.json: each value is type-checked, all problems are collected.

Defaults are those of transformers for a missing key.
"""

import math
from collections.abc import Sequence
from typing import Any

_MISSING = object()
LARGEST = 1 << 24  # above the vocabulary, width, depth and context of any model


class ConfigFile:
    """`problems` prevent the import; `notes` are shown to the user."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.problems: list[str] = []
        self.notes: list[str] = []

    def integer(self, key: str, default: Any = _MISSING) -> int:
        """An integer in 1..LARGEST, so that no torch size overflows; 1 if it is missing or wrong."""
        value = self._value(key, default)
        if type(value) is int and 0 < value <= LARGEST:
            return value
        self._wrong(key, value, f"an integer from 1 to {LARGEST}")
        return 1

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A finite number; 1 if it is missing or wrong."""
        value = self._value(key, default)
        if is_number(value):
            return float(value)
        self._wrong(key, value, "a number")
        return 1.0

    def truth(self, key: str, default: bool) -> bool:
        """A boolean; null counts as missing."""
        value = self._value(key, default)
        if isinstance(value, bool):
            return value
        self._wrong(key, value, "true or false")
        return default

    def only(self, key: str, allowed: Sequence[Any], default: Any, ours: str) -> Any:
        """One of the `allowed` values. `ours` says in the message what the decoder has."""
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
    """The value as in JSON, at most 60 characters."""
    text = (
        {True: "true", False: "false", None: "null"}[value]
        if value is None or value is True or value is False
        else repr(value)
    )
    return text if len(text) <= 60 else f"{text[:57]}…"
