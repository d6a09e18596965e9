"""Units of reading: plain data, small enough for JSON and for sending to other processes.

FilePart    a range of one file: bytes of jsonl or text, row groups of parquet; a complete file for other formats
CorpusTask  parts, in order, that one process reads
Document    one text
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pretrain.errors import DataError
from tokenizer.corpus.readers.rejections import (
    COMPRESSED,
    COPIED,
    DESCRIPTION,
    HIDDEN,
    LFS_POINTER,
    NO_LINES,
    NOT_REGULAR,
    NOT_UTF8,
    TABULAR,
)

FORMATS = ("jsonl", "text", "parquet", "tar")
MAX_DOCUMENT_BYTES = 64 << 20
TASK_BYTES = 256 << 20

# Formats of files that are listed and counted but not read: reason and detail of their Rejection.
ARCHIVE, HIDDEN_NAME, NO_FILE = "archive", "hidden", "no file"
COPY, TABLE, METADATA = "copy", "table", "metadata"
POINTER, UTF16, NOT_LINES = "pointer", "utf-16", "not lines"
LEFT_OUT = {
    ARCHIVE: (COMPRESSED, "not readable here: unpack or convert it"),
    HIDDEN_NAME: (HIDDEN, "its name begins with a dot, or is __pycache__"),
    NO_FILE: (NOT_REGULAR, "a symbolic link, pipe, socket or device"),
    COPY: (COPIED, "its name is that of a backup or of a download in progress"),
    TABLE: (TABULAR, "CSV, or one JSON array of records: convert it to JSON Lines or parquet"),
    METADATA: (DESCRIPTION, "it lies beside the data that it describes"),
    POINTER: (LFS_POINTER, "the data were not downloaded; `git lfs pull` fetches them"),
    UTF16: (NOT_UTF8, "none of it is read; `iconv -f UTF-16 -t UTF-8` converts it"),
    NOT_LINES: (NO_LINES, "none of it is read; it begins like a web page, or like one JSON array"),
}


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Options for reading documents, the same for all inputs. Raises DataError for an impossible value.

    `file_format`, one of FORMATS, is that of all files, whatever their names and content. `text_field` is the field of a
    record that holds its text, nested as "a.b.c". A record must meet all conditions in `where` (fields.py). `separator`
    separates the documents of a text file; without it a file is one document. `member` (fnmatch pattern) selects the tar
    members that hold text. A task has about `task_bytes` of text. Lines, files and members over `max_document_bytes` are
    rejected. A compressed file may expand to `max_file_bytes`, and beyond `max_document_bytes` at most `max_ratio`-fold.
    """

    file_format: str | None = None
    text_field: str = "text"
    where: tuple[str, ...] = ()
    separator: str | None = None
    member: str | None = None
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    task_bytes: int = TASK_BYTES
    max_ratio: int = 256
    max_file_bytes: int = 1 << 40

    def __post_init__(self) -> None:
        for name in ("max_document_bytes", "task_bytes", "max_ratio", "max_file_bytes"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}={getattr(self, name)} is less than 1")
        if self.file_format not in (None, *FORMATS):
            raise DataError(f"file_format={self.file_format!r} is not one of {', '.join(FORMATS)}")
        if not self.text_field:
            raise DataError("text_field is empty", hint="name the field that holds the text: --text-field text")
        if self.separator == "":
            raise DataError("separator is empty", hint="leave --separator out if a file is one document")

    def to_json(self) -> dict[str, Any]:
        """Plain values; without `file_format` if none is forced, as earlier versions wrote them."""
        values = asdict(self)
        if self.file_format is None:
            del values["file_format"]
        return values


@dataclass(frozen=True)
class FilePart:
    """A range of one file. `start` and `stop` are bytes, row groups, or 0 and the size for a complete file.

    A line (or a separated document) belongs to the part that contains its first byte, so any split gives each once.
    `format` is a kind with its compression ("jsonl", "jsonl.gz", …), or one of LEFT_OUT. `size` is the stored bytes of the
    complete file, checked when it is opened; `text_bytes` estimates the text of the part.
    """

    format: str
    url: str
    start: int
    stop: int
    size: int
    text_bytes: int


@dataclass(frozen=True)
class CorpusTask:
    """Parts that are read in order; all belong to input number `source`."""

    number: int
    source: int
    parts: tuple[FilePart, ...]

    @property
    def text_bytes(self) -> int:
        """Estimated UTF-8 bytes of text: for progress and load balancing only; never affects the output."""
        return sum(part.text_bytes for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "CorpusTask":
        """Inverse of `to_json`."""
        return cls(tree["number"], tree["source"], tuple(FilePart(**part) for part in tree["parts"]))


class Document(NamedTuple):
    """A text exactly as in the corpus, its place for messages, and its size in UTF-8 bytes."""

    place: str
    text: str
    bytes: int
