"""Turns a record (line, row or tar member) into a document: conditions, the text field, and checks of the text.

    FIELD=VALUE    FIELD!=VALUE    FIELD>=NUMBER    FIELD<=NUMBER    FIELD>NUMBER    FIELD<NUMBER

"a.b.c" is field c of field b of field a; a field literally named "a.b.c" takes precedence. Numbers compare by value; write
booleans and null as true, false and null. A record meets no condition if it lacks the field, or if the field holds a list,
an object, or a non-number in a numeric comparison; such records are counted separately.
"""

import operator
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pretrain.errors import DataError
from tokenizer.corpus.readers.parts import Document, ReadOptions
from tokenizer.corpus.readers.rejections import EMPTY, FILTERED, NO_FILTER_FIELD, NO_TEXT_FIELD, TRY, Rejection
from tokenizer.corpus.readers.tar_members import escape_name

_CONDITION = re.compile(r"([^=!<>]+)(!=|>=|<=|=|>|<)(.*)", re.DOTALL)
_ORDERED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_MISSING = object()
_USUAL_FIELDS = ("text", "content", "raw_content", "body", "markdown", "document", "article", "code")
_CONSTANTS = {True: "true", False: "false", None: "null"}


class Condition(NamedTuple):
    """One parsed `where` condition; `number` is None if VALUE is not a number."""

    field: str
    operator: str
    value: str
    number: float | None


@lru_cache
def parse_condition(expression: str) -> Condition:
    """Parse one condition of `where`. Raises DataError if it is malformed."""
    found = _CONDITION.fullmatch(expression)
    if found is None:
        raise DataError(
            f"where={expression!r} is not FIELD=VALUE, FIELD!=VALUE, or a numeric comparison with >=, <=, > or <",
            hint="for example --where lang=en or --where 'quality.score>=0.5'",
        )
    name, sign, value = found.groups()
    try:
        number = float(value)
    except ValueError:
        if sign in _ORDERED:
            raise DataError(
                f"where={expression!r}: {value!r} is not a number, and {sign} compares numbers",
                hint="use = or != to compare text",
            ) from None
        number = None
    return Condition(name.strip(), sign, value, number)


def parse_record(record: Mapping[str, Any], place: str, options: ReadOptions) -> Document | Rejection:
    """The document of a record that meets all conditions, or a Rejection."""
    for expression in options.where:
        rejection = _check_condition(record, place, parse_condition(expression))
        if rejection is not None:
            return rejection
    text = get_field(record, options.text_field)
    if isinstance(text, str):
        return check_text(text, place)
    if text is _MISSING:
        return missing_field(list(record), place, options.text_field, _longest_text(record))
    return Rejection(place, "text is not a string", f"{options.text_field!r} is {type(text).__name__}")


def missing_field(names: Sequence[str], place: str, text_field: str, likely: str | None = None) -> Rejection:
    """Rejection of a record without the text field; `names` are the fields it has, `likely` the one with its text."""
    among = escape_name(", ".join(map(repr, names[:10])))
    likely = next((name for name in _USUAL_FIELDS if name in names), likely)
    advice = f"{TRY}--text-field {shlex.quote(escape_name(likely))}" if likely else ""
    return Rejection(place, NO_TEXT_FIELD, f"{text_field!r} is not among {among or 'its fields: it has none'}{advice}")


def _longest_text(record: Mapping[str, Any]) -> str | None:
    texts = [(len(value), name) for name, value in record.items() if isinstance(value, str) and isinstance(name, str)]
    return max(texts)[1] if texts else None


def get_field(record: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or `_MISSING`."""
    if name in record:
        return record[name]
    found: Any = record
    for step in name.split("."):
        if not isinstance(found, Mapping) or step not in found:
            return _MISSING
        found = found[step]
    return found


def check_text(text: str, place: str) -> Document | Rejection:
    """A Document if `text` is not empty and has neither NUL nor lone surrogates, else a Rejection."""
    if not text:
        return Rejection(place, EMPTY, "no text")
    if "\0" in text:
        return Rejection(place, "NUL character", f"at character {text.index(chr(0))}")
    try:
        return Document(place, text, len(text.encode("utf-8")))
    except UnicodeEncodeError as error:
        return Rejection(place, "lone surrogate", f"{text[error.start]!r} at character {error.start}")


def _check_condition(record: Mapping[str, Any], place: str, condition: Condition) -> Rejection | None:
    found = get_field(record, condition.field)
    met = _compare(found, condition)
    if met:
        return None
    if met is None:
        what = "missing" if found is _MISSING else type(found).__name__
        return Rejection(place, NO_FILTER_FIELD, f"{condition.field!r} is {what}")
    wanted = f"{condition.field}{condition.operator}{condition.value}"
    return Rejection(place, FILTERED, f"not {escape_name(wanted)}")


def _compare(found: Any, condition: Condition) -> bool | None:
    """Whether the condition is met; None if `found` cannot be compared."""
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
