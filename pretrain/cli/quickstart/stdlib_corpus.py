"""The quickstart's corpus: the local Python standard library, so nothing is downloaded.

Source files of all modules, and docstrings of the built-in modules, which have no source files. One document in `HELD_OUT`
is held out, by a hash of its name.
"""

import hashlib
import importlib
import inspect
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = 25
# Installed packages, and tests, whose data has files that are invalid on purpose.
EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class CorpusStats:
    """Size of the corpus; `unreadable` counts files that are not UTF-8."""

    root: Path
    files: int
    docstrings: int
    bytes: int
    unreadable: int


def write_corpus(folder: Path) -> CorpusStats:
    """Write train.jsonl and valid.jsonl, one document {"text", "path"} per line."""
    folder.mkdir(parents=True)
    root = Path(sysconfig.get_paths()["stdlib"])
    sources, unreadable = _sources(root)
    docstrings = list(_docstrings())
    written = 0
    with (folder / "train.jsonl").open("w") as train, (folder / "valid.jsonl").open("w") as valid:
        for path, text in [*sources, *docstrings]:
            held_out = hashlib.sha256(path.encode()).digest()[0] % HELD_OUT == 0
            (valid if held_out else train).write(json.dumps({"text": text, "path": path}) + "\n")
            written += len(text.encode())
    return CorpusStats(root, len(sources), len(docstrings), written, unreadable)


def _sources(root: Path) -> tuple[list[tuple[str, str]], int]:
    """(name, text) of each source file, and the number of unreadable files."""
    found, unreadable = [], 0
    for path in sorted(root.rglob("*.py")):
        if EXCLUDED.intersection(path.relative_to(root).parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            unreadable += 1
            continue
        if text.strip() and "\0" not in text:
            found.append((str(path.relative_to(root)), text))
    return found, unreadable


def _docstrings() -> Iterator[tuple[str, str]]:
    """(name, text) of each built-in module: its docstring and those of its classes, functions and methods."""
    for name in sorted(sys.builtin_module_names):
        if name.startswith("__"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
        parts = [f"{name}\n\n{inspect.getdoc(module) or ''}"]
        for member, value in sorted(vars(module).items()):
            if not member.startswith("_") and (inspect.isclass(value) or callable(value)):
                parts += _described(member, value)
        text = "\n\n".join(parts)
        if len(text) > 200:
            yield f"<docstrings>/{name}", text


def _described(name: str, value: object) -> Iterator[str]:
    yield f"{name}\n{inspect.getdoc(value) or ''}"
    if inspect.isclass(value):
        for member, method in sorted(vars(value).items()):
            if not member.startswith("_") and callable(method) and (text := inspect.getdoc(method)):
                yield f"{name}.{member}\n{text}"
