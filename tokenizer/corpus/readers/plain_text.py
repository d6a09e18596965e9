"""Text files: a file is one document, or several with a separator between them that belongs to neither."""

from collections.abc import Iterator

from tokenizer.corpus.readers.byte_ranges import BYTE_ORDER_MARK, seek_offset, split_records
from tokenizer.corpus.readers.compressed import read_content
from tokenizer.corpus.readers.fields import check_text
from tokenizer.corpus.readers.open_file import escape_url, open_file, read_chunks
from tokenizer.corpus.readers.parts import Document, FilePart, ReadOptions
from tokenizer.corpus.readers.rejections import BINARY, EMPTY, NO_FILTER_FIELD, Rejection, too_large


def read_text_file(part: FilePart, options: ReadOptions) -> Iterator[Document | Rejection]:
    """Documents of a part, unmodified but for a byte-order mark at the start of the file.

    A place is the file, with the byte offset if a separator is used.
    """
    name, compressed = escape_url(part.url), part.format != "text"
    separator = None if options.separator is None else options.separator.encode("utf-8")
    with open_file(part) as file:
        if separator is not None and not compressed:
            file.seek(seek_offset(part.start, separator))
        chunks = read_content(file, part.format.rpartition(".")[2], options) if compressed else read_chunks(file)
        if separator is None:
            yield _read_single(chunks, name, options)
            return
        stop = None if compressed else part.stop
        for offset, data in split_records(
            chunks, separator, start=part.start, stop=stop, limit=options.max_document_bytes
        ):
            place = f"{name}: byte {offset}"
            if data is None:
                yield too_large(place, options.max_document_bytes)
            else:
                yield parse_text(data if offset else data.removeprefix(BYTE_ORDER_MARK), place, options)


def parse_text(data: bytes, place: str, options: ReadOptions) -> Document | Rejection:
    """The document of a complete file or member, or a Rejection. A text has no fields, so it meets no condition."""
    if options.where:
        return Rejection(place, NO_FILTER_FIELD, "a text has no fields")
    if not data:
        return Rejection(place, EMPTY, "no text")
    if b"\0" in data:
        return Rejection(place, BINARY, "contains NUL bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejection(place, "invalid UTF-8", f"{error.reason} at byte {error.start}")
    return check_text(text, place)


def _read_single(chunks: Iterator[bytes], name: str, options: ReadOptions) -> Document | Rejection:
    held: list[bytes] = []
    length = 0
    for chunk in chunks:
        held.append(chunk)
        length += len(chunk)
        if length > options.max_document_bytes:
            return too_large(name, options.max_document_bytes)
    return parse_text(b"".join(held).removeprefix(BYTE_ORDER_MARK), name, options)
