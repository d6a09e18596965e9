"""From a record (a line, a row, a member) to its text: conditions, the field of the text, and what a text must be.

    FIELD=VALUE    FIELD!=VALUE    FIELD>=NUMBER    FIELD<=NUMBER    FIELD>NUMBER    FIELD<NUMBER

"a.b.c" is field c of field b of field a; a field whose own name is "a.b.c" comes first. A number equals a VALUE that is
written as one; true, false and null are spelled so. What lacks the field, or holds a list, an object, or no number where one
is compared, meets no condition, and is counted apart.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pretrain.errors import DataError
from tokenizer.corpus.readers.parts import Document, ReadOptions
from tokenizer.corpus.readers.rejections import EMPTY, FILTERED, NO_FILTER_FIELD, Rejection
from tokenizer.corpus.readers.tar_members import show_name

_CONDITION = re.compile(r"([^=!<>]+)(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
_ORDERED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_MISSING = object()
_CONSTANTS = {True: "true", False: "false", None: "null"}


class Condition(NamedTuple):
    """`number` is None for a VALUE that is not written as a number."""

    field: str
    operator: str
    value: str
    number: float | None


@lru_cache
def parse_condition(expression: str) -> Condition:
    """One condition of `where`. Raises DataError for what is none."""
    found = _CONDITION.fullmatch(expression)
    if found is None:
        raise DataError(
            f"where={expression!r} is not FIELD=VALUE, FIELD!=VALUE, or a comparison by >=, <=, > or < with a number",
            hint="for example lang=en or quality.score>=0.5",
        )
    name, sign, value = found.groups()
    try:
        number = float(value)
    except ValueError:
        if sign in _ORDERED:
            raise DataError(f"where={expression!r}: {value!r} is not a number, and {sign} compares numbers") from None
        number = None
    return Condition(name.strip(), sign, value, number)


def document_of(record: Mapping[str, Any], place: str, options: ReadOptions) -> Document | Rejection:
    """The text of a record that meets all conditions, or why it is left out."""
    for expression in options.where:
        rejection = _unmet(record, place, parse_condition(expression))
        if rejection is not None:
            return rejection
    text = field_of(record, options.text_field)
    if isinstance(text, str):
        return checked(text, place)
    if text is _MISSING:
        return no_field(list(record), place, options.text_field)
    return Rejection(place, "text is not a string", f"{options.text_field!r} is {type(text).__name__}")


def no_field(names: Sequence[str], place: str, text_field: str) -> Rejection:
    """The Rejection of a record without the field."""
    among = show_name(", ".join(map(repr, names[:10])))
    return Rejection(
        place, "no text field", f"{text_field!r} is not among {among or 'its fields, of which there are none'}"
    )


def field_of(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or a marker of its own where there is none."""
    if name in record:
        return record[name]
    found: Any = record
    for step in name.split("."):
        if not isinstance(found, Mapping) or step not in found:
            return _MISSING
        found = found[step]
    return found


def checked(text: str, place: str) -> Document | Rejection:
    """A document of `text`, if it is one that can be encoded and decoded again."""
    if not text:
        return Rejection(place, EMPTY, "no text")
    if "\0" in text:
        return Rejection(place, "NUL character", f"at character {text.index(chr(0))}")
    try:
        return Document(place, text, len(text.encode("utf-8")))
    except UnicodeEncodeError as error:
        return Rejection(place, "lone surrogate", f"{text[error.start]!r} at character {error.start}")


def _unmet(record: Mapping[str, Any], place: str, condition: Condition) -> Rejection | None:
    found = field_of(record, condition.field)
    met = _compare(found, condition)
    if met:
        return None
    if met is None:
        what = "missing" if found is _MISSING else type(found).__name__
        return Rejection(place, NO_FILTER_FIELD, f"{condition.field!r} is {what}")
    wanted = f"{condition.field}{condition.operator}{condition.value}"
    return Rejection(place, FILTERED, f"not {show_name(wanted)}")


def _compare(found: Any, condition: Condition) -> bool | None:
    """Whether the condition is met; None where `found` cannot be compared."""
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if condition.operator in _ORDERED:
        if not number or condition.number is None:
            return None
        return _ORDERED[condition.operator](found, condition.number)
    equal: bool
    if number:
        equal = found == condition.number
    elif isinstance(found, str):
        equal = found == condition.value
    elif isinstance(found, bool) or found is None:
        equal = _CONSTANTS[found] == condition.value
    else:
        return None
    return equal == (condition.operator == "=")
