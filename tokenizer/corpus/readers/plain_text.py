"""Text files: a whole file is a document, or several are, with a separator between them that belongs to none."""

from collections.abc import Iterator

from tokenizer.corpus.readers.byte_ranges import lead, split_records
from tokenizer.corpus.readers.compressed import read_content
from tokenizer.corpus.readers.fields import checked
from tokenizer.corpus.readers.open_file import open_file, read_chunks, show
from tokenizer.corpus.readers.parts import Document, Part, ReadOptions
from tokenizer.corpus.readers.rejections import BINARY, EMPTY, NO_FILTER_FIELD, Rejection, too_large


def read_text_file(part: Part, options: ReadOptions) -> Iterator[Document | Rejection]:
    """The document or documents of a part, exactly as they are. A place is the file, and the byte where a separator is used."""
    name, compressed = show(part.url), part.format != "text"
    separator = None if options.separator is None else options.separator.encode("utf-8")
    with open_file(part) as file:
        if separator is not None and not compressed:
            file.seek(lead(part.start, separator))
        chunks = read_content(file, part.format.rpartition(".")[2], options) if compressed else read_chunks(file)
        if separator is None:
            yield _whole(chunks, name, options)
            return
        stop = None if compressed else part.stop
        for offset, data in split_records(
            chunks, separator, start=part.start, stop=stop, limit=options.max_document_bytes
        ):
            place = f"{name}: byte {offset}"
            yield too_large(place, options.max_document_bytes) if data is None else parse_text(data, place, options)


def parse_text(data: bytes, place: str, options: ReadOptions) -> Document | Rejection:
    """The document of a whole file or member, or why it is none. A text has no fields, and so meets no condition."""
    if options.where:
        return Rejection(place, NO_FILTER_FIELD, "a text has no fields")
    if not data:
        return Rejection(place, EMPTY, "no text")
    if b"\0" in data:
        return Rejection(place, BINARY, "has NUL bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejection(place, "invalid UTF-8", f"{error.reason} at byte {error.start}")
    return checked(text, place)


def _whole(chunks: Iterator[bytes], name: str, options: ReadOptions) -> Document | Rejection:
    held: list[bytes] = []
    length = 0
    for chunk in chunks:
        held.append(chunk)
        length += len(chunk)
        if length > options.max_document_bytes:
            return too_large(name, options.max_document_bytes)
    return parse_text(b"".join(held), name, options)
