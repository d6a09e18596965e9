"""Rules of naming, length and language that a script can hold the sources to."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from tests.support.repository import ROOT

PRODUCT = sorted(chain.from_iterable((ROOT / room).rglob("*.py") for room in ("pretrain", "launch", "tokenizer")))
OTHERS = sorted(chain.from_iterable((ROOT / room).rglob("*.py") for room in ("tests", "benchmarks")))
PROSE = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
# Entries of the past: what they name was there on their day.
HISTORY = {ROOT / "CHANGELOG.md", ROOT / "docs/log.md"}
LONGEST = 400
FILE_NAME = re.compile(r"(?<![\w*./{])(?P<name>[a-z_][a-z_0-9]*\.py)\b")
FOLDERS = ("pretrain", "launch", "tokenizer", "tests", "benchmarks", "docs", "configs")
EXISTING = {path.name for room in FOLDERS for path in (ROOT / room).rglob("*.py")}
# Files of other projects, and of a reader's own.
FOREIGN = {"sitecustomize.py", "convert_hf_to_gguf.py"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def test_a_docstring_leads_with_the_noun_or_the_verb() -> None:
    """Not with a clause: "Initial weights", not "What a run begins with"; "Checks that …", not "That …"."""
    found = [
        f"{place(path, line)}: {text.splitlines()[0]}"
        for path in [*PRODUCT, *(path for path in OTHERS if path.is_relative_to(ROOT / "benchmarks"))]
        for line, text in docstrings(path)
        if re.match(r"(What|That)\b", text)
    ]
    assert found == []


def repeated(named: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    places = defaultdict(list)
    for name, where in named:
        places[name].append(where)
    return {name: where for name, where in places.items() if len(where) > 1}


def test_no_two_classes_have_one_name() -> None:
    classes = (
        (node.name, place(path, node.lineno))
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert repeated(classes) == {}


def test_no_two_modules_have_one_name() -> None:
    modules = ((path.name, place(path, 1)) for path in PRODUCT if not path.name.startswith("__"))
    assert repeated(modules) == {}


def test_no_file_is_longer_than_an_engineer_reads_at_once() -> None:
    lengths = {place(path, 1): len(path.read_text().splitlines()) for path in [*PRODUCT, *OTHERS]}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings and comments of a module, or all of a page."""
    text = path.read_text()
    if path.suffix != ".py":
        yield 1, text
        return
    yield from docstrings(path)
    for number, line in enumerate(text.splitlines(), start=1):
        before, mark, comment = line.partition("#")
        if mark and before.count('"') % 2 == 0 and before.count("'") % 2 == 0:
            yield number, comment


@pytest.mark.parametrize("room", ["product", "tests and benchmarks", "docs"])
def test_files_that_prose_names_exist(room: str) -> None:
    paths = {"product": PRODUCT, "tests and benchmarks": OTHERS, "docs": sorted({*PROSE} - HISTORY)}[room]
    found = [
        f"{place(path, line)}: {match['name']}"
        for path in paths
        for line, text in prose_of(path)
        for match in FILE_NAME.finditer(text)
        if match["name"] not in EXISTING | FOREIGN
    ]
    assert found == []
