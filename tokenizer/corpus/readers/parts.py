"""What is read, and what comes out: plain data, small enough to write down as JSON and to send to a process.

Part      a range of one file: bytes of a jsonl or text file, row groups of a parquet file; other formats as a whole
Task      parts in their order, that one process reads
Document  one text
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pretrain.errors import DataError
from tokenizer.corpus.readers.rejections import COMPRESSED, HIDDEN, NOT_REGULAR

MAX_DOCUMENT_BYTES = 64 << 20
TASK_BYTES = 256 << 20

# Formats of files that are not read, so that they are counted like all else: the reason and its detail.
ARCHIVE, HIDDEN_NAME, NO_FILE = "archive", "hidden", "no file"
LEFT_OUT = {
    ARCHIVE: (COMPRESSED, "not readable here: unpack or convert it"),
    HIDDEN_NAME: (HIDDEN, "its name begins with a dot, or is __pycache__"),
    NO_FILE: (NOT_REGULAR, "a symbolic link, pipe, socket or device"),
}


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How documents are read, alike for all inputs.

    `text_field` holds the text of a record, nested as "a.b.c"; `where` are conditions that a record must meet, all of
    them (fields.py). `separator` parts the documents of a text file, which is one document without it. `member` (a
    pattern of fnmatch) says which members of a tar hold text. A task is about `task_bytes` of text. No line, file or
    member over `max_document_bytes` is taken; a compressed file may hold `max_ratio` times its own bytes once
    `max_document_bytes` came out of it, and `max_file_bytes` in all.
    """

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
        if not self.text_field:
            raise DataError("text_field is empty", hint="name the field that holds the text")
        if self.separator == "":
            raise DataError("separator is empty", hint="leave it out where a file is one document")


@dataclass(frozen=True)
class Part:
    """Documents of one file. `start` and `stop` are bytes, row groups, or 0 and the size for a whole file.

    A line (or a separated document) belongs to the part in which its first byte lies, so any cuts give each once.
    `format` is a kind with its compression ("jsonl", "jsonl.gz", …), or one of LEFT_OUT; `size` the stored bytes of the whole
    file, which reading holds against what it finds; `text_bytes` a guess at what the part holds.
    """

    format: str
    url: str
    start: int
    stop: int
    size: int
    text_bytes: int


@dataclass(frozen=True)
class Task:
    """Parts that are read one after the other; all of them belong to the input number `source`."""

    number: int
    source: int
    parts: tuple[Part, ...]

    @property
    def text_bytes(self) -> int:
        """A guess at the text in it, UTF-8 bytes: for progress and for sharing work, never for what is written."""
        return sum(part.text_bytes for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """A tree that `json.dumps` takes, and `from_json` gives back."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Task":
        """The task that `to_json` described."""
        return cls(tree["number"], tree["source"], tuple(Part(**part) for part in tree["parts"]))


class Document(NamedTuple):
    """A text exactly as it is in the corpus, its place for messages, and its UTF-8 size."""

    place: str
    text: str
    bytes: int
