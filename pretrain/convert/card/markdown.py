"""Escaping text from configurations, corpora and file names for Markdown."""

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#.!|~&$:@])")  # `.`, `:` and `@` because addresses become links


def escaped(text: str) -> str:
    """`text` for a line of prose or a table cell, with every special character of Markdown and HTML escaped."""
    return _SPECIAL.sub(r"\\\1", shown(text))


def shown(text: str) -> str:
    """`text` with unprintable and bidirectional control characters as escapes such as `\\n`."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def code_span(text: str) -> str:
    """`text` as inline code, outside tables; may hold backticks."""
    text = shown(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table; `align` has `l` or `r` for each column. Cells must be escaped."""
    rules = [{"l": "---", "r": "--:"}[side] for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rules, *rows))
