"""WebDataset tars: one document per member, plain text or a JSON object, optionally gzipped.

    NAME.txt  NAME.md            the complete member           NAME.json      a field of the object
    NAME.txt.gz  NAME.md.gz      its content                   NAME.json.gz

Members with other names are counted as not text. If two members of one sample could hold its text (a caption and its
metadata, say), the choice is ambiguous and reading stops with a DataError.
"""

import io
from collections.abc import Iterator
from fnmatch import fnmatchcase

from pretrain.errors import DataError
from tokenizer.corpus.readers.byte_ranges import BYTE_ORDER_MARK
from tokenizer.corpus.readers.compressed import read_content
from tokenizer.corpus.readers.jsonl import parse_line
from tokenizer.corpus.readers.open_file import escape_url, open_file
from tokenizer.corpus.readers.parts import Document, FilePart, ReadOptions
from tokenizer.corpus.readers.plain_text import parse_text
from tokenizer.corpus.readers.rejections import NO_TEXT_MEMBER, Rejection, too_large
from tokenizer.corpus.readers.tar_members import UnusableError, escape_name, read_members

SUFFIXES = (".txt", ".md", ".json", ".txt.gz", ".md.gz", ".json.gz")


def read_tar(part: FilePart, options: ReadOptions) -> Iterator[Document | Rejection]:
    """Documents of the members in tar order. A place is `file: member`. Raises DataError for an ambiguous sample."""
    name, previous = escape_url(part.url), ""
    with open_file(part) as file:
        members = read_members(
            file, name, lambda member: _holds_text(member, options.member), max_bytes=options.max_document_bytes
        )
        for member in members:
            if isinstance(member, Rejection):
                yield member
                continue
            place = f"{name}: {escape_name(member.name)}"
            if member.data is None:
                yield Rejection(place, NO_TEXT_MEMBER, "its name does not match a text member")
                continue
            if previous not in ("", member.name) and _sample(member.name) == _sample(previous):
                raise DataError(
                    f"{name}: both {escape_name(previous)} and {escape_name(member.name)} may hold the text of one sample",
                    hint="select one with a pattern: --member '*.txt'",
                )
            previous = member.name
            yield _parse_member(member.name, member.data, place, options)


def _holds_text(name: str, pattern: str | None) -> bool:
    return name.endswith(SUFFIXES) if pattern is None else fnmatchcase(name, pattern)


def _sample(name: str) -> str:
    """WebDataset's sample key: the path up to the first dot of its last component."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _parse_member(name: str, data: bytes, place: str, options: ReadOptions) -> Document | Rejection:
    if name.endswith(".gz"):
        try:
            data = _gunzip(data, options)
        except UnusableError as problem:
            # The other members can be read, so this is one bad document.
            return Rejection(place, f"{problem.reason} in a member", problem.detail)
        if len(data) > options.max_document_bytes:
            return too_large(place, options.max_document_bytes)
    data = data.removeprefix(BYTE_ORDER_MARK)
    if name.removesuffix(".gz").endswith(".json"):
        return parse_line(data, place, options)
    return parse_text(data, place, options)


def _gunzip(data: bytes, options: ReadOptions) -> bytes:
    """The content, or its first bytes if it is over `max_document_bytes`."""
    pieces: list[bytes] = []
    length = 0
    for piece in read_content(io.BytesIO(data), "gz", options):
        pieces.append(piece)
        length += len(piece)
        if length > options.max_document_bytes:
            break
    return b"".join(pieces)
