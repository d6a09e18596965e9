"""Documents left out by a reader, and the reasons under which they are counted (in `corpus.rejection_log`)."""

from typing import NamedTuple

COMPRESSED = "compressed or archive"
BINARY = "binary file"
EMPTY = "empty"
HIDDEN = "hidden"
COPIED = "copy or half of a file"
TABULAR = "table, not text"
DESCRIPTION = "description of a data set"
NOT_REGULAR = "link or special file"
NO_TEXT_MEMBER = "not a text member"
FILTERED = "filtered out"
NO_FILTER_FIELD = "filter field missing or not comparable"
NO_TEXT_FIELD = "no text field"
TRY = "; try "  # ends a detail with an option to type
# Common in any source tree (images, `__init__.py`), or asked for by the user: counted, but not bad documents.
ORDINARY_REASONS = frozenset(
    {
        COMPRESSED,
        COPIED,
        TABULAR,
        DESCRIPTION,
        BINARY,
        EMPTY,
        HIDDEN,
        NOT_REGULAR,
        NO_TEXT_MEMBER,
        FILTERED,
        NO_FILTER_FIELD,
    }
)

UNREADABLE = "unreadable"
BROKEN_TAR = "broken tar"
BROKEN_PARQUET = "broken parquet"
TRUNCATED_LINES = "truncated JSON Lines"
LFS_POINTER = "Git LFS pointer"
NOT_UTF8 = "UTF-16 text"
NO_LINES = "not JSON Lines"
BOMB = "decompression bomb"
FILE_TOO_LARGE = "file too large"
# One such rejection stands for any number of documents: the file, or the rest of it.
DAMAGED_REASONS = frozenset(
    {UNREADABLE, BROKEN_TAR, BROKEN_PARQUET, TRUNCATED_LINES, LFS_POINTER, NOT_UTF8, NO_LINES, BOMB, FILE_TOO_LARGE}
    | {f"{how} {codec}" for how in ("broken", "truncated") for codec in ("gzip", "zstd", "bzip2", "xz")}
)

# What to do about documents that were left out; `hint` of the log takes that of the most frequent reason.
HINTS = {
    NO_TEXT_FIELD: "name the field that holds the text with --text-field",
    COMPRESSED: "unpack or convert it first; readable are .jsonl, .txt and .md, also with .gz, .zst, .bz2 or .xz; .parquet; "
    "uncompressed .tar",
    COPIED: "rename such files, or say what they are with --format",
    TABULAR: "convert such files to JSON Lines or parquet, or read them as they are with --format text",
    DESCRIPTION: "name such files one by one to read them",
    HIDDEN: "name a hidden file or folder itself to read it",
    NOT_REGULAR: "links in a folder are not followed: name each of them (--input FOLDER/*), or copy it with `cp -rL`",
    NO_TEXT_MEMBER: "select the members that hold text, for example --member '*.txt'",
    FILTERED: "no record meets all conditions: check --where",
    NO_FILTER_FIELD: "check the names of the fields in --where",
}


class Rejection(NamedTuple):
    """A document that was left out: its place (`file:line`), the reason it is counted under, and details."""

    place: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason} ({self.detail})"


def too_large(place: str, limit: int) -> Rejection:
    """The Rejection of a document over `limit` bytes."""
    return Rejection(place, "too large", f"over {limit} bytes")
