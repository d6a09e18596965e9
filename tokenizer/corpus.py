"""A corpus: the documents that the paths of `--input` name, in one order, read on demand.

    PATH.jsonl     one document a line, its text in one field        (blank lines are no documents)
    other file     one document
    folder         every regular file below it, in sorted order, each as above; hidden files and folders and
                   `__pycache__` are left out, symbolic links are not followed

1. `scan` walks the paths and keeps 28 bytes a document (file, offset, length, line), so a corpus of millions of
   documents can be shuffled in memory.
2. `Corpus.document(i)` is the reference, small enough to send to another process.
3. `read_text` reads and checks one document. What is wrong with it is returned as a `Rejection`, never repaired: a
   U+FFFD in place of bad bytes would be learned.
"""

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from pretrain.errors import DataError
from tokenizer.rejections import BINARY, COMPRESSED, EMPTY, Rejection, RejectionLog

MAX_DOCUMENT_BYTES = 64 << 20
_COMPRESSED_SUFFIXES = frozenset(
    {".gz", ".tgz", ".bz2", ".xz", ".lz4", ".zst", ".zip", ".7z", ".tar", ".whl", ".parquet", ".arrow"}
)


class Document(NamedTuple):
    """Where a document lies: `length` bytes at `offset` of `path`; `line` counts from 1, and is 0 for a whole file."""

    path: str
    offset: int
    length: int
    line: int

    @property
    def place(self) -> str:
        """`file:line`, or the file alone, for messages."""
        return f"{self.path}:{self.line}" if self.line else self.path


@dataclass
class Corpus:
    """References to all documents in the order of the inputs, and what scanning already left out."""

    files: list[str] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    file_numbers: "array[int]" = field(default_factory=lambda: array("I"))
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    lengths: "array[int]" = field(default_factory=lambda: array("Q"))
    lines: "array[int]" = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.offsets)

    def document(self, position: int) -> Document:
        """Reference to the document at `position`."""
        path = self.files[self.file_numbers[position]]
        return Document(path, self.offsets[position], self.lengths[position], self.lines[position])

    def add(self, offset: int, length: int, line: int) -> None:
        """Append a document of the newest file."""
        self.file_numbers.append(len(self.files) - 1)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.lines.append(line)


def scan(inputs: Sequence[Path], *, max_document_bytes: int = MAX_DOCUMENT_BYTES) -> Corpus:
    """Reference every document of `inputs`; a line of a .jsonl file is found, but not parsed.

    Raises DataError for a path that is missing, given twice, neither file nor folder, or in a format that is not
    readable yet, and when there is no document at all.
    """
    if not inputs:
        raise DataError("no input was given", hint="name a text file, a .jsonl file or a folder with --input")
    _refuse_overlap(inputs)
    corpus = Corpus()
    for path in inputs:
        _refuse_unreadable(path)
        for file in _walk(path) if path.is_dir() else [path]:
            try:
                _scan_file(file, corpus, max_document_bytes)
            except OSError as error:
                corpus.rejections.append(Rejection(str(file), "unreadable", str(error.strerror)))
    if not len(corpus):
        log = RejectionLog()
        log.add(corpus.rejections)
        raise DataError(f"no document in {', '.join(map(str, inputs))}{log.summary()}")
    return corpus


def _refuse_unreadable(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file() and path.suffix.lower() in _COMPRESSED_SUFFIXES:
        raise DataError(
            f"{path}: {path.suffix} files are not readable yet",
            hint="unpack or convert it first, to text files or to .jsonl with one document a line",
        )
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: neither a regular file nor a folder")


def _refuse_overlap(inputs: Sequence[Path]) -> None:
    resolved = [path.resolve() for path in inputs]
    for i, inner in enumerate(resolved):
        for j, outer in enumerate(resolved):
            if i != j and inner.is_relative_to(outer):
                raise DataError(f"{inputs[i]} is part of {inputs[j]}, and its documents would be read twice")


def refuse_output_inside(inputs: Sequence[Path], output: Path) -> None:
    """Raise DataError if `output` lies in one of the input folders: the next run would read what this one wrote."""
    for path in inputs:
        if output.resolve().is_relative_to(path.resolve()):
            raise DataError(
                f"output {output} lies inside the input {path}", hint="choose a folder outside of the corpus"
            )


def _walk(folder: Path) -> Iterator[Path]:
    """Regular files below `folder`, by name at each level: the same order on every file system."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _scan_file(path: Path, corpus: Corpus, max_document_bytes: int) -> None:
    suffix = path.suffix.lower()
    if suffix in _COMPRESSED_SUFFIXES:
        corpus.rejections.append(Rejection(str(path), COMPRESSED, f"{suffix} is not readable yet"))
        return
    corpus.files.append(str(path))
    with path.open("rb") as file:
        if suffix == ".jsonl":
            _scan_lines(file, corpus, max_document_bytes)
            return
        size = os.fstat(file.fileno()).st_size
    if size > max_document_bytes:
        corpus.rejections.append(_too_large(str(path), max_document_bytes))
    elif size == 0:
        corpus.rejections.append(Rejection(str(path), EMPTY, "no text"))
    else:
        corpus.add(0, size, 0)


def _scan_lines(file: BinaryIO, corpus: Corpus, max_document_bytes: int) -> None:
    offset, number = 0, 0
    while line := file.readline(max_document_bytes + 1):
        number += 1
        length = len(line)
        if length > max_document_bytes and not line.endswith(b"\n"):
            corpus.rejections.append(_too_large(f"{corpus.files[-1]}:{number}", max_document_bytes))
            while line and not line.endswith(b"\n"):
                line = file.readline(1 << 20)
                length += len(line)
        elif not line.isspace():
            corpus.add(offset, length, number)
        offset += length


def _too_large(place: str, limit: int) -> Rejection:
    return Rejection(place, "too large", f"over {limit} bytes")


def read_text(document: Document, *, text_field: str = "text") -> str | Rejection:
    """The text of a document, exactly as it is, or why it is left out.

    Raises DataError if the file changed since the scan.
    """
    try:
        with Path(document.path).open("rb") as file:
            file.seek(document.offset)
            data = file.read(document.length)
    except OSError as error:
        return Rejection(document.place, "unreadable", str(error.strerror))
    if len(data) != document.length:
        raise DataError(
            f"{document.place}: became shorter while the corpus was read", hint="run again on files at rest"
        )
    is_line = document.line > 0
    if not is_line and b"\0" in data:
        return Rejection(document.place, BINARY, "has NUL bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejection(document.place, "invalid UTF-8", f"{error.reason} at byte {error.start}")
    return _parse_line(document.place, text, text_field) if is_line else text


def _parse_line(place: str, line: str, text_field: str) -> str | Rejection:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Rejection(place, "broken JSON", str(error))
    if not isinstance(record, dict):
        return Rejection(place, "not a JSON object", f"found {type(record).__name__}")
    if text_field not in record:
        return Rejection(
            place, "no text field", f"{text_field!r} is not among {', '.join(map(repr, list(record)[:10]))}"
        )
    text = record[text_field]
    if not isinstance(text, str):
        return Rejection(place, "text is not a string", f"{text_field!r} is {type(text).__name__}")
    if not text:
        return Rejection(place, EMPTY, "no text")
    if "\0" in text:
        return Rejection(place, "NUL character", f"at character {text.index(chr(0))}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return Rejection(place, "lone surrogate", f"{text[error.start]!r} at character {error.start}")
    return text


def shuffled(n: int, seed: int) -> np.ndarray:
    """A permutation of 0 … n-1 (int64 [n]): positions sorted by their splitmix64 hash (Steele et al. 2014).

    Our own hash, since NumPy does not promise the same shuffle across versions, and the shards' bytes depend on it.
    """
    keys = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys += np.uint64((seed * 0xD1342543DE82EF95 + 0x632BE59BD9B4E019) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    keys ^= keys >> np.uint64(31)
    return np.argsort(keys, kind="stable")
