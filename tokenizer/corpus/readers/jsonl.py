"""JSON Lines: one document per line, its text in one field of a JSON object. Blank lines are skipped."""

import json
from collections.abc import Iterator

from tokenizer.corpus.readers.byte_ranges import BYTE_ORDER_MARK, seek_offset, split_records
from tokenizer.corpus.readers.compressed import read_content
from tokenizer.corpus.readers.fields import parse_record
from tokenizer.corpus.readers.open_file import escape_url, open_file, read_chunks
from tokenizer.corpus.readers.parts import Document, FilePart, ReadOptions
from tokenizer.corpus.readers.rejections import TRUNCATED_LINES, Rejection, too_large


def read_jsonl(part: FilePart, options: ReadOptions) -> Iterator[Document | Rejection]:
    """Documents of the lines that start in the part.

    A place is `file:line` in a file's first part, else `file: byte N`: numbering lines would need all earlier parts.
    """
    name, compressed = escape_url(part.url), part.format != "jsonl"
    with open_file(part) as file:
        if compressed:
            chunks, stop = read_content(file, part.format.rpartition(".")[2], options), None
        else:
            file.seek(seek_offset(part.start, b"\n"))
            chunks, stop = read_chunks(file), part.stop
        lines = split_records(chunks, b"\n", start=part.start, stop=stop, limit=options.max_document_bytes)
        for number, (offset, line) in enumerate(lines, 1):
            place = f"{name}: byte {offset}" if part.start else f"{name}:{number}"
            if line is None:
                yield too_large(place, options.max_document_bytes)
                continue
            if not offset:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line and not line.isspace():
                found = parse_line(line, place, options)
                if isinstance(found, Rejection) and not compressed and _is_cut(line, offset + len(line), part):
                    found = Rejection(place, TRUNCATED_LINES, "the file ends inside this line")
                yield found


def _is_cut(line: bytes, end: int, part: FilePart) -> bool:
    """Whether an unusable last line looks like the first half of an object, as in a copy that was interrupted."""
    return end >= part.size and line.lstrip().startswith(b"{") and not line.rstrip().endswith(b"}")


def parse_line(line: bytes, place: str, options: ReadOptions) -> Document | Rejection:
    """The document of one JSON object without a byte-order mark, or a Rejection."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Rejection(place, "invalid UTF-8", f"{error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return Rejection(place, "broken JSON", str(error))
    if not isinstance(record, dict):
        return Rejection(place, "not a JSON object", f"found {type(record).__name__}")
    return parse_record(record, place, options)
