"""A document a member of a WebDataset tar: plain text or a JSON object, each also compressed by gzip.

    NAME.txt  NAME.md            the whole member              NAME.json      the field of an object
    NAME.txt.gz  NAME.md.gz      its content                   NAME.json.gz

Members of other names are no text, and counted. Where two members of one sample might hold its text (a caption and its
metadata, say), nothing tells which, and the run ends.
"""

import io
from collections.abc import Iterator
from fnmatch import fnmatchcase

from pretrain.errors import DataError
from tokenizer.corpus.readers.compressed import read_content
from tokenizer.corpus.readers.jsonl import parse_line
from tokenizer.corpus.readers.open_file import open_file, show
from tokenizer.corpus.readers.parts import Document, Part, ReadOptions
from tokenizer.corpus.readers.plain_text import parse_text
from tokenizer.corpus.readers.rejections import NO_TEXT_MEMBER, Rejection, too_large
from tokenizer.corpus.readers.tar_members import UnusableError, read_members, show_name

SUFFIXES = (".txt", ".md", ".json", ".txt.gz", ".md.gz", ".json.gz")


def read_tar(part: Part, options: ReadOptions) -> Iterator[Document | Rejection]:
    """Documents of the members in the order of the tar. A place is `file: member`."""
    name, previous = show(part.url), ""
    with open_file(part) as file:
        members = read_members(
            file, name, lambda member: _holds_text(member, options.member), max_bytes=options.max_document_bytes
        )
        for member in members:
            if isinstance(member, Rejection):
                yield member
                continue
            place = f"{name}: {show_name(member.name)}"
            if member.data is None:
                yield Rejection(place, NO_TEXT_MEMBER, "its name is not one of a text")
                continue
            if previous not in ("", member.name) and _sample(member.name) == _sample(previous):
                raise DataError(
                    f"{name}: both {show_name(previous)} and {show_name(member.name)} may hold the text of one sample",
                    hint="say which by a pattern: --member '*.txt'",
                )
            previous = member.name
            yield _parse_member(member.name, member.data, place, options)


def _holds_text(name: str, pattern: str | None) -> bool:
    return name.endswith(SUFFIXES) if pattern is None else fnmatchcase(name, pattern)


def _sample(name: str) -> str:
    """WebDataset's key: the path up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _parse_member(name: str, data: bytes, place: str, options: ReadOptions) -> Document | Rejection:
    if name.endswith(".gz"):
        try:
            data = _gunzip(data, options)
        except UnusableError as problem:
            return Rejection(place, problem.reason, problem.detail)
        if len(data) > options.max_document_bytes:
            return too_large(place, options.max_document_bytes)
    if name.removesuffix(".gz").endswith(".json"):
        return parse_line(data, place, options)
    return parse_text(data, place, options)


def _gunzip(data: bytes, options: ReadOptions) -> bytes:
    """The content, or more than `max_document_bytes` of it."""
    pieces: list[bytes] = []
    length = 0
    for piece in read_content(io.BytesIO(data), "gz", options):
        pieces.append(piece)
        length += len(piece)
        if length > options.max_document_bytes:
            break
    return b"".join(pieces)
