"""Files of a plan in words: which were read as what, and which were left out."""

from collections.abc import Iterable
from pathlib import PurePosixPath

from tokenizer.corpus.file_names import format_of
from tokenizer.corpus.readers.open_file import escape_url
from tokenizer.corpus.readers.parts import LEFT_OUT, CorpusTask

SHOWN = 3


def describe_files(tasks: Iterable[CorpusTask]) -> str:
    """`3 jsonl (1 by its content: train.json), 2 text`."""
    names: dict[str, list[str]] = {}
    for url, file_format in _formats(tasks).items():
        if file_format not in LEFT_OUT:
            names.setdefault(file_format, []).append(url)
    return ", ".join(f"{len(urls):,} {name}{_by_content(urls, name)}" for name, urls in sorted(names.items()))


def describe_left_out(tasks: Iterable[CorpusTask]) -> dict[str, str]:
    """By reason, how many files were not read, and the first names: `2: README.md, dataset_info.json`."""
    names: dict[str, list[str]] = {}
    for url, file_format in _formats(tasks).items():
        if file_format in LEFT_OUT:
            names.setdefault(LEFT_OUT[file_format][0], []).append(url)
    return {reason: f"{len(urls):,}: {_first(urls)}" for reason, urls in names.items()}


def _formats(tasks: Iterable[CorpusTask]) -> dict[str, str]:
    return {part.url: part.format for task in tasks for part in task.parts}


def _by_content(urls: list[str], file_format: str) -> str:
    other = [url for url in urls if format_of(url) != file_format]
    return f" ({len(other):,} not by name: {_first(other)})" if other else ""


def _first(urls: list[str]) -> str:
    shown = ", ".join(escape_url(PurePosixPath(url).name) for url in urls[:SHOWN])
    return f"{shown}, …" if len(urls) > SHOWN else shown
