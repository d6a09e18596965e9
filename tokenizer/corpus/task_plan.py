"""Plan of a corpus: its split into tasks. Depends on the inputs and the options, never on the number of processes.

1. List the files of each input, in a fixed order.                                                    -> listing.py
2. Check their formats by their first bytes, and leave out what describes the data.     -> file_content.py, file_names.py
3. Split files that allow it: jsonl (and text with a separator) into byte ranges, parquet into ranges of row groups, by the
   sizes in its footer. Other files stay undivided.
4. Join neighbours into tasks of about `task_bytes` of text. A task holds files of one input only; for encoding, files that
   are named one after another are one input, as their folder would be.

Only first bytes and parquet footers are read here; `readers.read_documents` reads the documents of a task.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath

from pretrain.errors import DataError
from tokenizer.corpus.empty_inputs import refuse_empty_input
from tokenizer.corpus.file_content import check_content
from tokenizer.corpus.file_names import is_data, is_metadata
from tokenizer.corpus.listing import ListedFile, list_files
from tokenizer.corpus.readers import CorpusTask, FilePart, ReadOptions
from tokenizer.corpus.readers.fields import parse_condition
from tokenizer.corpus.readers.open_file import escape_url, locate, open_file
from tokenizer.corpus.readers.parquet import import_parquet, open_parquet
from tokenizer.corpus.readers.parts import ARCHIVE, COPY, LEFT_OUT, METADATA, TABLE
from tokenizer.corpus.readers.rejections import DAMAGED_REASONS, UNREADABLE, Rejection
from tokenizer.corpus.readers.tar_members import UnusableError
from tokenizer.corpus.rejection_log import RejectionLog

# Assumed bytes of text per compressed byte; it only decides how many files share a task.
COMPRESSION_RATIO = 4
FOOTERS_AT_ONCE = 16
CHECKED_AT_ONCE = 16
# Named as an input, such a file is a mistake; in a folder it is counted.
REFUSED = (ARCHIVE, COPY, TABLE)


@dataclass(frozen=True)
class CorpusSource:
    """One input: number of files, including those that are not read, and their size in bytes; `single` if it is a file."""

    input: str
    files: int
    bytes: int
    single: bool


@dataclass(frozen=True)
class TaskPlan:
    """All tasks in corpus order, and their inputs.

    `bytes` are stored bytes, `text_bytes` an estimate of the text. `fingerprint` (sha256) covers names, sizes, ranges and
    options: equal plans read the same documents in the same order from unchanged files. `problems` has the damaged files that
    planning found.
    """

    tasks: tuple[CorpusTask, ...]
    sources: tuple[CorpusSource, ...]
    bytes: int
    text_bytes: int
    fingerprint: str
    problems: RejectionLog = field(default_factory=RejectionLog, compare=False)


def plan_tasks(inputs: Sequence[str], options: ReadOptions, *, join_files: bool = False) -> TaskPlan:
    """Split `inputs` (paths or object store addresses) into tasks.

    With `join_files`, neighbours that are single files are one input: no sequence crosses a task, so many small tasks would
    lose the ends of many.

    Raises DataError if an input is missing, overlaps another, is an empty folder or has no readable file, or if a
    `where` condition does not parse.
    """
    if not inputs:
        raise DataError("no input was given", hint="name a file, a folder or an address with --input")
    for expression in options.where:
        parse_condition(expression)
    _refuse_overlap(inputs)
    tasks: list[CorpusTask] = []
    sources = []
    problems = RejectionLog()
    listed = [
        (address, _check_files(address, list_files(address, options.file_format), options, problems))
        for address in inputs
    ]
    for number, (address, files) in enumerate(_join_files(listed) if join_files else listed):
        single = _is_file(address, files)
        sources.append(CorpusSource(address, len(files), sum(file.size for file in files), single))
        for parts in _group_parts(_split_files(files, options, problems), options.task_bytes):
            tasks.append(CorpusTask(len(tasks), number, parts))
    return TaskPlan(
        tasks=tuple(tasks),
        sources=tuple(sources),
        bytes=sum(source.bytes for source in sources),
        text_bytes=sum(task.text_bytes for task in tasks),
        fingerprint=_fingerprint(tasks, options),
        problems=problems,
    )


def _check_files(
    address: str, listed: Sequence[ListedFile], options: ReadOptions, problems: RejectionLog
) -> list[ListedFile]:
    """The files with the formats that they have; adds damaged ones to `problems`. Raises DataError if nothing is readable."""
    if not listed:
        raise DataError(f"{escape_url(address)}: no file in it")
    with ThreadPoolExecutor(CHECKED_AT_ONCE) as threads:
        files = list(threads.map(lambda file: check_content(file, options), listed))
    named = _is_file(address, files)
    if named and files[0].format in REFUSED:
        reason, detail = LEFT_OUT[files[0].format]
        raise DataError(
            f"{escape_url(address)}: files of this kind are not readable: {reason} ({detail})",
            hint="unpack or convert it, or say what it is with --format; readable formats: .jsonl, .txt and .md, also with "
            ".gz, .zst, .bz2 or .xz; .parquet; uncompressed .tar",
        )
    if not named and options.file_format is None:
        files = _leave_out_descriptions(files)
    left_out = RejectionLog()
    for file in files:
        if file.format in LEFT_OUT:
            rejection = Rejection(escape_url(file.url), *LEFT_OUT[file.format])
            for log in (left_out, problems) if rejection.reason in DAMAGED_REASONS else (left_out,):
                log.add(rejection.place, rejection)
    if not left_out.damaged and all(file.format in LEFT_OUT for file in files):
        refuse_empty_input(address, left_out, single_file=named)
    return files


def _leave_out_descriptions(files: Sequence[ListedFile]) -> list[ListedFile]:
    """Leave out texts that describe data in their folder or below it."""
    folders: set[PurePosixPath] = set()
    for file in files:
        if is_data(file.url, file.format):
            folders.update(PurePosixPath(file.url).parents)
    return [
        file._replace(format=METADATA)
        if file.format == "text" and is_metadata(file.url, beside_data=PurePosixPath(file.url).parent in folders)
        else file
        for file in files
    ]


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


def _split_files(files: Sequence[ListedFile], options: ReadOptions, problems: RejectionLog) -> Iterator[FilePart]:
    """Parts of all files, in order; over `task_bytes` only if a file or row group cannot be divided."""
    tables = [file for file in files if file.format == "parquet"]
    if tables:
        import_parquet()  # before the threads start, so that a missing package is one error
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        row_groups = threads.map(lambda file: _row_groups(file, options), tables)
        for file in files:
            if file.format == "parquet":
                found = next(row_groups)
                if isinstance(found, Rejection):  # the part without row groups makes the reader report it again
                    problems.add(escape_url(file.url), found)
                    found = []
                yield from _split_parquet(file, found, options.task_bytes)
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


def _row_groups(file: ListedFile, options: ReadOptions) -> list[int] | Rejection:
    """Bytes of text in each row group; a Rejection if the footer cannot be read."""
    try:
        with open_file(FilePart(file.format, file.url, 0, 0, file.size, 0)) as opened:
            return [group.text_bytes or 0 for group in open_parquet(opened, options).groups]
    except UnusableError as problem:
        return Rejection(escape_url(file.url), problem.reason, f"{problem.detail}; none of it can be read")
    except OSError as error:
        return Rejection(escape_url(file.url), UNREADABLE, str(error.strerror))


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
    digest = hashlib.sha256(json.dumps(options.to_json(), sort_keys=True).encode())
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
