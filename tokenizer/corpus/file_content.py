"""Formats of files checked against their first bytes: what a name does not say, or says wrongly.

    a text that holds a JSON object a line         jsonl                a text that holds a JSON array of objects    not read
    text or jsonl that is compressed               as compressed        a text that is parquet                       parquet
    a pointer of Git LFS, UTF-16, a web page or an array in a .jsonl    damaged: reported by planning

Only the first bytes are read: 64 KiB of a text, 1 KiB of JSON Lines; of others only of files as small as a pointer.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain

from tokenizer.corpus.file_names import format_of
from tokenizer.corpus.listing import ListedFile
from tokenizer.corpus.readers.byte_ranges import BYTE_ORDER_MARK
from tokenizer.corpus.readers.compressed import read_content
from tokenizer.corpus.readers.open_file import open_file
from tokenizer.corpus.readers.parts import ARCHIVE, LEFT_OUT, NOT_LINES, POINTER, TABLE, UTF16, FilePart, ReadOptions
from tokenizer.corpus.readers.tar_members import UnusableError

HEAD_BYTES = 64 << 10
LINES_HEAD_BYTES = 1 << 10
POINTER_BYTES = 1 << 10
_POINTER = b"version https://git-lfs.github.com/spec/"
_MAGIC = {b"\x1f\x8b\x08": "gz", b"\x28\xb5\x2f\xfd": "zst", b"\xfd7zXZ\0": "xz"}
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
_ARRAY = re.compile(rb"\s*\[\s*\{")
_TEXT_CODEC_NAMES = (".txt", ".md", ".jsonl", ".ndjson", ".json")


def check_content(file: ListedFile, options: ReadOptions) -> ListedFile:
    """The file with the format that its first bytes show; unchanged if they agree with its name, or cannot be read."""
    kind, _, codec = file.format.partition(".")
    small = file.size < POINTER_BYTES
    if file.format in LEFT_OUT or not file.size or not (small or kind == "text" or (kind == "jsonl" and not codec)):
        return file
    try:
        head = _read_head(file, HEAD_BYTES if kind == "text" else LINES_HEAD_BYTES)
    except OSError:
        return file  # its reader reports it
    return file._replace(format=_decide(file, head, options))


def _read_head(file: ListedFile, length: int) -> bytes:
    with open_file(FilePart(file.format, file.url, 0, 0, file.size, 0)) as opened:
        return opened.read(length)


def _decide(file: ListedFile, head: bytes, options: ReadOptions) -> str:
    if head.startswith(_POINTER):
        return POINTER
    kind, _, codec = file.format.partition(".")
    if kind not in ("text", "jsonl"):
        return file.format
    if not codec and _is_utf16(head):
        return UTF16
    if options.file_format is not None:
        return file.format
    compressed = "" if codec else _codec_of(head)
    codec = codec or compressed
    if compressed and kind == "text" and not file.url.lower().endswith(_TEXT_CODEC_NAMES):
        kind = ARCHIVE  # unless its content is lines
    whole = len(head) >= file.size
    if kind == "jsonl":
        return f"jsonl.{codec}" if codec else NOT_LINES if _is_no_lines(head) else "jsonl"
    if codec:
        head, whole = _decompress(head, codec, options)
    elif head.startswith(b"PAR1") and head[4:5] < b" ":
        return "parquet"
    if _is_lines(head, options.text_field, whole=whole):
        return f"jsonl.{codec}" if codec else "jsonl"
    if _ARRAY.match(head) and format_of(file.url) == "text" and ".json" in file.url.lower():
        return TABLE
    return f"text.{codec}" if codec and kind == "text" else kind


def _codec_of(head: bytes) -> str:
    if _BZIP2.match(head):
        return "bz2"
    return next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), "")


def _decompress(head: bytes, codec: str, options: ReadOptions) -> tuple[bytes, bool]:
    """The first bytes of the content, and whether they are all of it. Damage is the reader's to report."""
    import io

    pieces: list[bytes] = []
    try:
        for piece in read_content(io.BytesIO(head), codec, options):
            pieces.append(piece)
            if sum(map(len, pieces)) >= HEAD_BYTES:
                return b"".join(pieces)[:HEAD_BYTES], False
    except UnusableError:
        return b"".join(pieces), False
    return b"".join(pieces), True


def _is_utf16(head: bytes) -> bool:
    if not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return False
    try:
        return head[: len(head) // 2 * 2].decode("utf-16").isprintable() or b"\0" in head
    except UnicodeDecodeError:
        return False


def _is_no_lines(head: bytes) -> bool:
    """Whether a .jsonl begins like a web page or an array of records: no line of it is an object."""
    start = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    return start.startswith(b"<") or _ARRAY.match(start) is not None


def _is_lines(head: bytes, text_field: str, *, whole: bool) -> bool:
    """Whether the first two lines are JSON objects, or the only one is and has the text field."""
    head = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if not head.startswith(b"{"):
        return False
    *complete, rest = head.split(b"\n")
    if not complete and not whole:  # a line longer than the head
        return head.startswith(b'{"') and json.dumps(text_field).encode() in head
    records = list(_first_records(chain(complete, [rest] if whole else [])))
    return (
        len(records) == 2 and all(records) if len(records) != 1 else text_field.partition(".")[0] in (records[0] or ())
    )


def _first_records(lines: Iterator[bytes]) -> Iterator[dict[str, object] | None]:
    """Up to two lines that are not blank, as objects; None for a line that is no object."""
    shown = 0
    for line in lines:
        if line.strip() and shown < 2:
            shown += 1
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield record if isinstance(record, dict) else None
