"""Plan of a corpus: its split into tasks. Depends on the inputs and the options, never on the number of processes.

1. List the files of each input, in a fixed order.                                                    -> listing.py
2. Split files that allow it: jsonl (and text with a separator) into byte ranges, parquet into ranges of row groups, by the
   sizes in its footer. Other files stay undivided.
3. Join neighbours into tasks of about `task_bytes` of text. A task holds files of one input only; for encoding, files that
   are named one after another are one input, as their folder would be.

Only parquet footers are read here; `readers.read_documents` reads the documents of a task.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path

from pretrain.errors import DataError
from tokenizer.corpus.listing import ListedFile, list_files
from tokenizer.corpus.readers import CorpusTask, FilePart, ReadOptions
from tokenizer.corpus.readers.fields import parse_condition
from tokenizer.corpus.readers.open_file import escape_url, locate, open_file
from tokenizer.corpus.readers.parquet import import_parquet, open_parquet
from tokenizer.corpus.readers.parts import LEFT_OUT
from tokenizer.corpus.readers.tar_members import UnusableError

# Assumed bytes of text per compressed byte; it only decides how many files share a task.
COMPRESSION_RATIO = 4
FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class CorpusSource:
    """One input: number of files, including those that are not read, and their size in bytes."""

    input: str
    files: int
    bytes: int


@dataclass(frozen=True)
class TaskPlan:
    """All tasks in corpus order, and their inputs.

    `bytes` are stored bytes, `text_bytes` an estimate of the text. `fingerprint` (sha256) covers names, sizes, ranges and
    options: equal plans read the same documents in the same order from unchanged files.
    """

    tasks: tuple[CorpusTask, ...]
    sources: tuple[CorpusSource, ...]
    bytes: int
    text_bytes: int
    fingerprint: str


def plan_tasks(inputs: Sequence[str], options: ReadOptions, *, join_files: bool = False) -> TaskPlan:
    """Split `inputs` (paths or object store addresses) into tasks.

    With `join_files`, neighbours that are single files are one input: no sequence crosses a task, so many small tasks would
    lose the ends of many.

    Raises DataError if an input is missing, overlaps another, is an empty folder or has an unreadable format, or if a
    `where` condition does not parse.
    """
    if not inputs:
        raise DataError("no input was given", hint="name a file, a folder or an address with --input")
    for expression in options.where:
        parse_condition(expression)
    _refuse_overlap(inputs)
    tasks: list[CorpusTask] = []
    sources = []
    listed = [(address, _listed_files(address)) for address in inputs]
    for number, (address, files) in enumerate(_join_files(listed) if join_files else listed):
        sources.append(CorpusSource(address, len(files), sum(file.size for file in files)))
        for parts in _group_parts(_split_files(files, options), options.task_bytes):
            tasks.append(CorpusTask(len(tasks), number, parts))
    return TaskPlan(
        tasks=tuple(tasks),
        sources=tuple(sources),
        bytes=sum(source.bytes for source in sources),
        text_bytes=sum(task.text_bytes for task in tasks),
        fingerprint=_fingerprint(tasks, options),
    )


def _listed_files(address: str) -> list[ListedFile]:
    files = list_files(address)
    if not files:
        raise DataError(f"{escape_url(address)}: no file in it")
    return list(files)


def _join_files(listed: Sequence[tuple[str, list[ListedFile]]]) -> Iterator[tuple[str, list[ListedFile]]]:
    """The inputs, with neighbours that are single files as one, named by its first and last."""
    for single, run in groupby(listed, lambda one: _is_file(*one)):
        members = list(run)
        if single and len(members) > 1:
            files = [file for _, found in members for file in found]
            yield f"{members[0][0]} … {members[-1][0]}", files
        else:
            yield from members


def _is_file(address: str, files: Sequence[ListedFile]) -> bool:
    return len(files) == 1 and _resolve_address(files[0].url) == _resolve_address(address)


def _split_files(files: Sequence[ListedFile], options: ReadOptions) -> Iterator[FilePart]:
    """Parts of all files, in order; over `task_bytes` only if a file or row group cannot be divided."""
    tables = [file for file in files if file.format == "parquet"]
    if tables:
        import_parquet()  # before the threads start, so that a missing package is one error
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        row_groups = threads.map(lambda file: _row_groups(file, options), tables)
        for file in files:
            if file.format == "parquet":
                yield from _split_parquet(file, next(row_groups), options.task_bytes)
            elif _is_divisible(file, options):
                yield from _split_bytes(file, options.task_bytes)
            elif file.format in LEFT_OUT:
                yield FilePart(file.format, file.url, 0, 0, file.size, 0)
            else:
                ratio = COMPRESSION_RATIO if "." in file.format else 1
                yield FilePart(file.format, file.url, 0, file.size, file.size, ratio * file.size)


def _is_divisible(file: ListedFile, options: ReadOptions) -> bool:
    separator = options.separator
    if file.format == "jsonl":
        return True
    if file.format != "text" or separator is None:
        return False
    # A separator that can overlap itself ("\n\n" in "\n\n\n") is found unambiguously only from the start of the file.
    return not any(separator.endswith(separator[:length]) for length in range(1, len(separator)))


def _split_bytes(file: ListedFile, task_bytes: int) -> Iterator[FilePart]:
    """Byte ranges of equal length."""
    ranges = max(1, -(-file.size // task_bytes))
    edges = [file.size * i // ranges for i in range(ranges + 1)]
    for start, stop in pairwise(edges):
        yield FilePart(file.format, file.url, start, stop, file.size, stop - start)


def _split_parquet(file: ListedFile, row_groups: Sequence[int], task_bytes: int) -> Iterator[FilePart]:
    """Ranges of row groups; `row_groups` are their bytes of text."""
    start = size = 0
    for group, more in enumerate(row_groups):
        if group > start and size + more > task_bytes:
            yield FilePart(file.format, file.url, start, group, file.size, size)
            start, size = group, 0
        size += more
    yield FilePart(file.format, file.url, start, len(row_groups), file.size, size)


def _row_groups(file: ListedFile, options: ReadOptions) -> list[int]:
    """Bytes of text in each row group; empty if the file cannot be read, which its reader reports."""
    try:
        with open_file(FilePart(file.format, file.url, 0, 0, file.size, 0)) as opened:
            return [group.text_bytes or 0 for group in open_parquet(opened, options).groups]
    except (UnusableError, OSError):
        return []


def _group_parts(parts: Iterator[FilePart], task_bytes: int) -> Iterator[tuple[FilePart, ...]]:
    """Groups of neighbours, at least one each, of up to `task_bytes` of text."""
    held: list[FilePart] = []
    size = 0
    for part in parts:
        if held and size + part.text_bytes > task_bytes:
            yield tuple(held)
            held, size = [], 0
        held.append(part)
        size += part.text_bytes
    if held:
        yield tuple(held)


def _fingerprint(tasks: Sequence[CorpusTask], options: ReadOptions) -> str:
    digest = hashlib.sha256(json.dumps(asdict(options), sort_keys=True).encode())
    for task in tasks:
        digest.update(json.dumps(task.to_json(), sort_keys=True).encode())
    return digest.hexdigest()


def _refuse_overlap(inputs: Sequence[str]) -> None:
    resolved = sorted((f"{_resolve_address(address)}/", address) for address in inputs)
    for (outer, first), (inner, second) in pairwise(resolved):
        if inner.startswith(outer):  # an inner path sorts right behind its outer one
            raise DataError(
                f"{escape_url(second)} is part of {escape_url(first)}, and its documents would be read twice",
                hint="give each file or folder once",
            )


def refuse_output_inside(inputs: Sequence[str | Path], output: Path) -> None:
    """Raise DataError if `output` lies inside an input folder: the next run would read this run's output."""
    for address in inputs:
        if f"{output.resolve()}/".startswith(f"{_resolve_address(str(address))}/"):
            raise DataError(
                f"output {output} lies inside the input {escape_url(str(address))}",
                hint="choose an output folder outside the corpus",
            )


def _resolve_address(address: str) -> str:
    """Canonical form of a path or address, without a trailing slash."""
    place = locate(address)
    if isinstance(place, Path):
        return str(place.resolve()).rstrip("/")
    return f"{place[0].address}/{place[1]}".rstrip("/")
