"""docs/modules.md: `python -m tests.support.module_index` prints it, `make reference` writes it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.repository import ROOT

PACKAGES = ("pretrain", "tokenizer", "launch")
HEADER = """\
# Modules

Made from the first lines of docstrings by `make reference`; do not edit. [The tour](tour.md) has the map and a reading order.
"""


def module_index() -> str:
    """The page: a heading for each room, a line for each module."""
    lines = [HEADER]
    for room in rooms():
        name = room.parent.relative_to(ROOT).as_posix()
        lines += [f"## {name}", "", summary(room), ""]
        modules = [path for path in sorted(room.parent.glob("*.py")) if path != room]
        lines += [f"- [`{path.name}`](../{name}/{path.name}): {summary(path)}" for path in modules] + [""] * bool(
            modules
        )
    return "\n".join(lines).rstrip("\n") + "\n"


def rooms() -> Iterator[Path]:
    """The `__init__.py` of each package."""
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("__init__.py"), key=lambda path: path.parent.parts)


def summary(path: Path) -> str:
    """First sentence of a module's docstring, or its first line if the line ends one."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = docstring.split("\n\n")[0]
    first, *rest = paragraph.split("\n")
    while rest and not first.endswith((".", "!", "?")):
        first = f"{first} {rest.pop(0).strip()}"
    return first


if __name__ == "__main__":
    print(module_index(), end="")
