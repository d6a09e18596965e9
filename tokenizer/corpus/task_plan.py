"""A corpus, planned: which process reads what, decided by the inputs and the options alone, never by the number of processes.

1. The files of each input are listed, in one order.                                                  -> listing.py
2. Files that can be entered anywhere are cut: jsonl (and text with a separator) into ranges of bytes, parquet into ranges of
   row groups, whose sizes its footer tells. Other files are taken whole.
3. Neighbours are joined into tasks of about `task_bytes` of text. A task holds files of one input only.

Nothing but footers of parquet files is read here. What a task holds is read by `readers.read_documents`.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from pretrain.errors import DataError
from tokenizer.corpus.listing import File, list_files
from tokenizer.corpus.readers import Part, ReadOptions, Task
from tokenizer.corpus.readers.fields import parse_condition
from tokenizer.corpus.readers.open_file import locate, open_file, show
from tokenizer.corpus.readers.parquet import import_parquet, open_table
from tokenizer.corpus.readers.parts import LEFT_OUT
from tokenizer.corpus.readers.tar_members import UnusableError

# Text in a compressed byte: a guess that only decides how many files share a task.
COMPRESSION_RATIO = 4
FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class CorpusSource:
    """One input: how many files it names, those included that are not read, and their stored bytes."""

    input: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """All tasks in the order of the corpus, and the inputs they come from.

    `bytes` are as stored, `text_bytes` a guess at the text. `fingerprint` (sha256) covers names, sizes, ranges and options:
    equal plans read the same documents in the same order from files that did not change.
    """

    tasks: tuple[Task, ...]
    sources: tuple[CorpusSource, ...]
    bytes: int
    text_bytes: int
    fingerprint: str


def plan_tasks(inputs: Sequence[str], options: ReadOptions) -> Plan:
    """Cut what `inputs` (paths, or addresses of an object store) name into tasks.

    Raises DataError for an input that is missing, given twice, or of a format that cannot be read, for options that are
    none, and for a folder without a file.
    """
    if not inputs:
        raise DataError("no input was given", hint="name a file, a folder or an address with --input")
    for expression in options.where:
        parse_condition(expression)
    _refuse_overlap(inputs)
    tasks: list[Task] = []
    sources = []
    for number, address in enumerate(inputs):
        files = list_files(address)
        if not files:
            raise DataError(f"{show(address)}: no file in it")
        sources.append(CorpusSource(address, len(files), sum(file.size for file in files)))
        for parts in _grouped(_cut_all(files, options), options.task_bytes):
            tasks.append(Task(len(tasks), number, parts))
    return Plan(
        tasks=tuple(tasks),
        sources=tuple(sources),
        bytes=sum(source.bytes for source in sources),
        text_bytes=sum(task.text_bytes for task in tasks),
        fingerprint=_fingerprint(tasks, options),
    )


def _cut_all(files: Sequence[File], options: ReadOptions) -> Iterator[Part]:
    """Parts of all files, in order; none is over `task_bytes` if it can be helped."""
    tables = [file for file in files if file.format == "parquet"]
    if tables:
        import_parquet()  # said once, before threads need it
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        row_groups = threads.map(lambda file: _row_groups(file, options), tables)
        for file in files:
            if file.format == "parquet":
                yield from _cut_table(file, next(row_groups), options.task_bytes)
            elif _is_divisible(file, options):
                yield from _cut_bytes(file, options.task_bytes)
            elif file.format in LEFT_OUT:
                yield Part(file.format, file.url, 0, 0, file.size, 0)
            else:
                ratio = COMPRESSION_RATIO if "." in file.format else 1
                yield Part(file.format, file.url, 0, file.size, file.size, ratio * file.size)


def _is_divisible(file: File, options: ReadOptions) -> bool:
    separator = options.separator
    if file.format == "jsonl":
        return True
    if file.format != "text" or separator is None:
        return False
    # One that may overlap with itself, such as two newlines in three, is found only from the beginning.
    return not any(separator.endswith(separator[:length]) for length in range(1, len(separator)))


def _cut_bytes(file: File, task_bytes: int) -> Iterator[Part]:
    """Ranges of equal length."""
    ranges = max(1, -(-file.size // task_bytes))
    edges = [file.size * i // ranges for i in range(ranges + 1)]
    for start, stop in pairwise(edges):
        yield Part(file.format, file.url, start, stop, file.size, stop - start)


def _cut_table(file: File, row_groups: Sequence[int], task_bytes: int) -> Iterator[Part]:
    """Ranges of row groups, whose text has `row_groups` bytes."""
    start = size = 0
    for group, more in enumerate(row_groups):
        if group > start and size + more > task_bytes:
            yield Part(file.format, file.url, start, group, file.size, size)
            start, size = group, 0
        size += more
    yield Part(file.format, file.url, start, len(row_groups), file.size, size)


def _row_groups(file: File, options: ReadOptions) -> list[int]:
    """Bytes of text in each row group; none for a file that cannot be read, which its reader will say."""
    try:
        with open_file(Part(file.format, file.url, 0, 0, file.size, 0)) as opened:
            return [group.text_bytes or 0 for group in open_table(opened, options).groups]
    except (UnusableError, OSError):
        return []


def _grouped(parts: Iterator[Part], task_bytes: int) -> Iterator[tuple[Part, ...]]:
    """Neighbours, as many as `task_bytes` allow and at least one."""
    held: list[Part] = []
    size = 0
    for part in parts:
        if held and size + part.text_bytes > task_bytes:
            yield tuple(held)
            held, size = [], 0
        held.append(part)
        size += part.text_bytes
    if held:
        yield tuple(held)


def _fingerprint(tasks: Sequence[Task], options: ReadOptions) -> str:
    digest = hashlib.sha256(json.dumps(asdict(options), sort_keys=True).encode())
    for task in tasks:
        digest.update(json.dumps(task.to_json(), sort_keys=True).encode())
    return digest.hexdigest()


def _refuse_overlap(inputs: Sequence[str]) -> None:
    resolved = sorted((f"{_whole_address(address)}/", address) for address in inputs)
    for (outer, first), (inner, second) in pairwise(resolved):
        if inner.startswith(outer):  # what lies inside of something sorts right behind it
            raise DataError(f"{show(second)} is part of {show(first)}, and its documents would be read twice")


def refuse_output_inside(inputs: Sequence[str | Path], output: Path) -> None:
    """Raise DataError if `output` lies in one of the input folders: the next run would read what this one wrote."""
    for address in inputs:
        if f"{output.resolve()}/".startswith(f"{_whole_address(str(address))}/"):
            raise DataError(
                f"output {output} lies inside the input {show(str(address))}",
                hint="choose a folder outside of the corpus",
            )


def _whole_address(address: str) -> str:
    """An address without what two names of one place may differ in, and without a slash at its end."""
    place = locate(address)
    if isinstance(place, Path):
        return str(place.resolve()).rstrip("/")
    return f"{place[0].address}/{place[1]}".rstrip("/")
