"""Text from a configuration, a corpus or a file name inside Markdown, where it stays text."""

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#.!|~&$:@])")  # `.`, `:` and `@` because addresses become links


def escaped(text: str) -> str:
    """`text` in one line of prose or one cell of a table: every character that Markdown or HTML could obey is escaped."""
    return _SPECIAL.sub(r"\\\1", shown(text))


def shown(text: str) -> str:
    """`text` with what does not print, or would reorder its surroundings, as an escape such as `\\n`."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def code_span(text: str) -> str:
    """`text` as code in a line, outside tables, whatever backticks it holds."""
    text = shown(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table; `align` has `l` or `r` for each column. Cells are escaped already."""
    rules = [{"l": "---", "r": "--:"}[side] for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rules, *rows))
