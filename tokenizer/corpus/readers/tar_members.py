"""Strict reader for the plain files of untrusted tars.

    | header 512 | data | zeros to 512 | header 512 | data | … | 1,024 zeros | zeros to the end of the file

1. Verify the header checksum; the size field must be octal digits, and the data must lie inside the file.
2. `x` (PAX) and `L` (GNU) headers rename the next member; they are parsed strictly and limited to 64 KiB.
3. Check name and type. A refused member is skipped; if its end is uncertain, so is the rest of the file.
4. Read wanted members up to a limit and skip the others. Nothing is extracted.

Python's tarfile does not suffice: a PAX or GNU header that claims 1 GiB, in a file without data, makes it allocate 2 GiB;
it accepts sizes such as `0o17`, `1_0` and -1, and archives truncated between two members.

Format: POSIX.1-2017, `pax`; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files".
"""

import os
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from tokenizer.corpus.readers.rejections import BROKEN_TAR, Rejection

MAX_MEMBER_BYTES = 64 << 20
MAX_EXTENDED_BYTES = 64 << 10
MAX_NAME_BYTES = 4096

_RECORD = 512
_OCTAL = re.compile(rb" *([0-7]{1,12})[ \0]*")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,5}) ")
_POSIX, _GNU = b"ustar\x0000", b"ustar  \0"
_REGULAR, _DIRECTORY, _PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"0", b"5", b"x", b"g", b"L", b"K"
_NO_FILES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
}
_SPARSE_KEYS = (b"GNU.sparse.", b"SCHILY.realsize", b"SUN.holesdata")
# Keys that would change the name or extent of all following members.
_NOT_GLOBAL = (b"path", b"size", b"linkpath", *_SPARSE_KEYS)


class UnusableError(Exception):
    """An unusable file or member: `reason` and `detail`. Readers turn it into a `Rejection`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class TarMember(NamedTuple):
    """A plain file of a tar; `data` is None if it was not wanted."""

    name: str
    data: bytes | None


class _TarHeader(NamedTuple):
    """A verified header: `kind` is the type flag, `data_start` the offset of the data in the file."""

    name: bytes
    size: int
    kind: bytes
    data_start: int

    @property
    def end(self) -> int:
        """File offset of the next header."""
        return self.data_start + -(-self.size // _RECORD) * _RECORD


def read_members(
    file: BinaryIO, place: str, wanted: Callable[[str], bool], *, max_bytes: int = MAX_MEMBER_BYTES
) -> Iterator[TarMember | Rejection]:
    """Plain files of the seekable `file` in order, with a Rejection for each unusable member.

    `place` names the tar in messages. Holds at most `max_bytes` and one extended header in memory. Directories are
    skipped. If the rest of the file cannot be read, the last item is a Rejection with reason BROKEN_TAR.
    """
    try:
        yield from _read_members(file, place, wanted, max_bytes)
    except UnusableError as problem:
        yield Rejection(place, problem.reason, f"{problem.detail}; the rest of the file cannot be read")


def _read_members(
    file: BinaryIO, place: str, wanted: Callable[[str], bool], max_bytes: int
) -> Iterator[TarMember | Rejection]:
    file_size = file.seek(0, os.SEEK_END)
    position = 0
    long_name: bytes | None = None
    extended: dict[bytes, bytes] | None = None
    while True:
        header = _read_header(file, position, file_size)
        if header is None:
            if long_name is not None or extended is not None:
                raise UnusableError(
                    BROKEN_TAR, f"the extended header at its end, byte {position}, belongs to no member"
                )
            _check_end(file, position, file_size)
            return
        position = header.end
        if header.kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            data = _read_extended(file, header)
            if header.kind == _PAX_GLOBAL:
                _check_global(parse_pax(data))
            elif header.kind == _PAX and extended is None:
                extended = parse_pax(data)
            elif header.kind == _LONG_NAME and long_name is None:
                long_name = data.removesuffix(b"\0")
            elif header.kind != _LONG_LINK:  # belongs to a link, which is refused below
                raise UnusableError(BROKEN_TAR, f"two extended headers for one member before byte {position}")
            continue
        name, records = header.name if long_name is None else long_name, extended or {}
        if b"path" in records:
            if long_name is not None:
                raise UnusableError(BROKEN_TAR, f"both a PAX and a GNU name for one member before byte {position}")
            name = records[b"path"]
        if b"size" in records and records[b"size"] != b"%d" % header.size:
            raise UnusableError(BROKEN_TAR, f"two sizes for one member before byte {position}")
        long_name = extended = None
        try:
            if header.kind == _DIRECTORY and not header.size:
                continue
            _check_plain(header, records)
            shown = _checked_name(name)
            if not wanted(shown):
                yield TarMember(shown, None)
            elif header.size > max_bytes:
                raise UnusableError("too large", f"{header.size} bytes, over {max_bytes}")
            else:
                yield TarMember(shown, _read(file, header.data_start, header.size))
        except UnusableError as problem:
            if problem.reason == BROKEN_TAR:
                raise
            yield Rejection(f"{place}: {escape_name(name)}", problem.reason, problem.detail)


def _read_header(file: BinaryIO, position: int, file_size: int) -> _TarHeader | None:
    """The header at `position`; None if it is a record of zeros, the end mark."""
    block = _read(file, position, _RECORD)
    if block == bytes(_RECORD):
        return None
    checksum = _octal(block[148:156], "checksum", position)
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != checksum:
        raise UnusableError(BROKEN_TAR, f"checksum mismatch in the header at byte {position}")
    if block[257:265] not in (_POSIX, _GNU):
        raise UnusableError(BROKEN_TAR, f"the header at byte {position} is neither POSIX nor GNU")
    name, prefix = block[:100].split(b"\0", 1)[0], block[345:500].split(b"\0", 1)[0]
    # GNU headers hold other fields in the bytes of the POSIX prefix.
    if prefix and block[257:265] == _POSIX:
        name = prefix + b"/" + name
    kind = block[156:157].replace(b"\0", _REGULAR)
    header = _TarHeader(name, _octal(block[124:136], "size", position), kind, position + _RECORD)
    if header.end > file_size:
        raise UnusableError(
            BROKEN_TAR, f"truncated: the member at byte {position} ends at {header.end}, the file at {file_size}"
        )
    return header


def _octal(digits: bytes, field: str, position: int) -> int:
    # GNU's base-256 encoding, for sizes of 8 GiB and more, is refused too.
    found = _OCTAL.fullmatch(digits)
    if found is None:
        raise UnusableError(BROKEN_TAR, f"the {field} of the header at byte {position} is {digits!r}, not octal digits")
    return int(found[1], 8)


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    data = file.read(length)
    if len(data) != length:
        raise UnusableError(BROKEN_TAR, f"truncated: {len(data)} of {length} bytes at byte {start}")
    return data


def _check_end(file: BinaryIO, position: int, file_size: int) -> None:
    """Require two records of zeros and nothing but zeros after them: else the tar is truncated or hides data."""
    if file_size < position + 2 * _RECORD:
        raise UnusableError(BROKEN_TAR, f"truncated: one record of zeros at its end, byte {position}, instead of two")
    while position < file_size:
        chunk = _read(file, position, min(1 << 20, file_size - position))
        if chunk != bytes(len(chunk)):
            raise UnusableError(BROKEN_TAR, "data follows its end (two tars in one file?)")
        position += len(chunk)


def _read_extended(file: BinaryIO, header: _TarHeader) -> bytes:
    if header.size > MAX_EXTENDED_BYTES:
        raise UnusableError(
            BROKEN_TAR,
            f"the extended header at byte {header.data_start} has {header.size} bytes, over {MAX_EXTENDED_BYTES}",
        )
    return _read(file, header.data_start, header.size)


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Parse records `LENGTH KEY=VALUE\\n` of a PAX header. Raises UnusableError for any deviation."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        length = _PAX_LENGTH.match(data, start)
        end = start + int(length[1]) if length else 0
        if length is None or not length.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise UnusableError(BROKEN_TAR, f"its PAX header contains {data[start : start + 20]!r}, not a record")
        key, equals, value = data[length.end() : end - 1].partition(b"=")
        if not key or not equals or key in records:
            raise UnusableError(BROKEN_TAR, f"its PAX header gives {escape_name(key)} twice, or no value")
        records[key] = value
        start = end
    return records


def _check_global(records: dict[bytes, bytes]) -> None:
    for key in records:
        if key.startswith(_NOT_GLOBAL):
            raise UnusableError(BROKEN_TAR, f"a global PAX header sets {escape_name(key)} for all members")


def _check_plain(header: _TarHeader, records: dict[bytes, bytes]) -> None:
    """Raise UnusableError unless the member is a plain file; with reason BROKEN_TAR if its end is uncertain."""
    what = _NO_FILES.get(header.kind)
    if what is not None and not header.size:
        raise UnusableError("not a plain file", what)
    if header.kind != _REGULAR:
        what = {b"S": "a sparse file", _DIRECTORY: "a directory with data"}.get(header.kind, what)
        raise UnusableError(
            BROKEN_TAR, f"{what or f'type {header.kind!r}'} before byte {header.end}, whose end is uncertain"
        )
    for key in records:
        if key.startswith(_SPARSE_KEYS):
            raise UnusableError("not a plain file", "a sparse file")


def _checked_name(name: bytes) -> str:
    parts = name.split(b"/")
    if not name or len(name) > MAX_NAME_BYTES or b"\0" in name or not parts[0] or b".." in parts or not parts[-1]:
        raise UnusableError("unsafe name", "absolute, with `..`, empty, ending in `/`, with a NUL, or over 4,096 bytes")
    return name.decode("utf-8", "surrogateescape")


def escape_name(name: bytes | str) -> str:
    """A name for a message: ASCII with control characters escaped, at most 120 characters."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    shown = ascii(text)[1:-1]
    return shown if len(shown) <= 120 else f"{shown[:120]}…"
