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
