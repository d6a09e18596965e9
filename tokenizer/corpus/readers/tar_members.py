"""The plain files in a tar that someone else made, one after the other, without trusting it.

    | header 512 | data | zeros to 512 | header 512 | data | … | 1,024 zeros | zeros to the end of the file

1. A header is held against its checksum; its size field must be octal digits and lie inside the file.
2. `x` (PAX) and `L` (GNU) headers rename the member that follows; they are parsed strictly, and never larger than 64 KiB.
3. Name and type are checked. A member that is refused is skipped; where its end is in doubt, the rest of the file is.
4. Wanted members are read up to a limit, others skipped. Nothing is extracted.

Python's tarfile is no choice here: for a PAX or GNU header that claims 1 GiB, in a file without data, it takes 2 GiB of
memory; it accepts sizes such as `0o17`, `1_0` and -1, and an archive that ends anywhere between two members.

Format: POSIX.1-2017, `pax`; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files".
"""

import os
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from tokenizer.corpus.readers.rejections import Rejection

MAX_MEMBER_BYTES = 64 << 20
MAX_EXTENDED_BYTES = 64 << 10
MAX_NAME_BYTES = 4096
BROKEN_TAR = "broken tar"

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
# What would move or rename every member that follows.
_NOT_GLOBAL = (b"path", b"size", b"linkpath", *_SPARSE_KEYS)


class UnusableError(Exception):
    """Why a member cannot be used; it becomes a `Rejection` before it leaves this package."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Member(NamedTuple):
    """A plain file of a tar; `data` is None for one that was not wanted."""

    name: str
    data: bytes | None


class _Header(NamedTuple):
    """A checked header: `kind` is the type flag, `data_start` the offset of the data in the file."""

    name: bytes
    size: int
    kind: bytes
    data_start: int

    @property
    def end(self) -> int:
        """Where the next header is."""
        return self.data_start + -(-self.size // _RECORD) * _RECORD


def read_members(
    file: BinaryIO, place: str, wanted: Callable[[str], bool], *, max_bytes: int = MAX_MEMBER_BYTES
) -> Iterator[Member | Rejection]:
    """Plain files in the order in which they lie in `file` (seekable), and a Rejection for all that is wrong.

    `place` names the tar in messages; at most `max_bytes` and one extended header are in memory. Directories are passed
    over. The last item is a Rejection of reason BROKEN_TAR where the rest of the file cannot be read.
    """
    try:
        yield from _read_members(file, place, wanted, max_bytes)
    except UnusableError as problem:
        yield Rejection(place, problem.reason, f"{problem.detail}; the rest of the file cannot be read")


def _read_members(
    file: BinaryIO, place: str, wanted: Callable[[str], bool], max_bytes: int
) -> Iterator[Member | Rejection]:
    file_size = file.seek(0, os.SEEK_END)
    position = 0
    long_name: bytes | None = None
    extended: dict[bytes, bytes] | None = None
    while True:
        header = _read_header(file, position, file_size)
        if header is None:
            if long_name is not None or extended is not None:
                raise UnusableError(BROKEN_TAR, f"an extended header at its end, byte {position}, belongs to no member")
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
            elif header.kind != _LONG_LINK:  # only links have one, and they are refused below
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
                yield Member(shown, None)
            elif header.size > max_bytes:
                raise UnusableError("too large", f"{header.size} bytes, over {max_bytes}")
            else:
                yield Member(shown, _read(file, header.data_start, header.size))
        except UnusableError as problem:
            if problem.reason == BROKEN_TAR:
                raise
            yield Rejection(f"{place}: {show_name(name)}", problem.reason, problem.detail)


def _read_header(file: BinaryIO, position: int, file_size: int) -> _Header | None:
    """The header at `position`; None where a record of zeros stands in its place."""
    block = _read(file, position, _RECORD)
    if block == bytes(_RECORD):
        return None
    checksum = _octal(block[148:156], "checksum", position)
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != checksum:
        raise UnusableError(BROKEN_TAR, f"the header at byte {position} does not give its checksum")
    if block[257:265] not in (_POSIX, _GNU):
        raise UnusableError(BROKEN_TAR, f"the header at byte {position} is neither POSIX nor GNU")
    name, prefix = block[:100].split(b"\0", 1)[0], block[345:500].split(b"\0", 1)[0]
    # In GNU headers other fields lie where POSIX has the prefix.
    if prefix and block[257:265] == _POSIX:
        name = prefix + b"/" + name
    kind = block[156:157].replace(b"\0", _REGULAR)
    header = _Header(name, _octal(block[124:136], "size", position), kind, position + _RECORD)
    if header.end > file_size:
        raise UnusableError(
            BROKEN_TAR, f"truncated: the member at byte {position} ends at {header.end}, the file at {file_size}"
        )
    return header


def _octal(digits: bytes, field: str, position: int) -> int:
    # Base-256, GNU's way to write 8 GiB and more, is refused with the rest.
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
    """Two records of zeros end a tar, and nothing but zeros may follow: else something is cut off, or hidden."""
    if file_size < position + 2 * _RECORD:
        raise UnusableError(BROKEN_TAR, f"truncated: its end, byte {position}, has one record of zeros instead of two")
    while position < file_size:
        chunk = _read(file, position, min(1 << 20, file_size - position))
        if chunk != bytes(len(chunk)):
            raise UnusableError(BROKEN_TAR, "data follows its end (two tars in one file?)")
        position += len(chunk)


def _read_extended(file: BinaryIO, header: _Header) -> bytes:
    if header.size > MAX_EXTENDED_BYTES:
        raise UnusableError(
            BROKEN_TAR,
            f"an extended header at byte {header.data_start} of {header.size} bytes, over {MAX_EXTENDED_BYTES}",
        )
    return _read(file, header.data_start, header.size)


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Records `LENGTH KEY=VALUE\\n` of a PAX header. Raises UnusableError for whatever is not exactly that."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        length = _PAX_LENGTH.match(data, start)
        end = start + int(length[1]) if length else 0
        if length is None or not length.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise UnusableError(BROKEN_TAR, f"its PAX header holds {data[start : start + 20]!r}, which is no record")
        key, equals, value = data[length.end() : end - 1].partition(b"=")
        if not key or not equals or key in records:
            raise UnusableError(BROKEN_TAR, f"its PAX header gives {show_name(key)} twice, or no value")
        records[key] = value
        start = end
    return records


def _check_global(records: dict[bytes, bytes]) -> None:
    for key in records:
        if key.startswith(_NOT_GLOBAL):
            raise UnusableError(BROKEN_TAR, f"a global PAX header sets {show_name(key)} for all members")


def _check_plain(header: _Header, records: dict[bytes, bytes]) -> None:
    """Raise UnusableError unless the member is a plain file; with reason BROKEN_TAR if its end is in doubt too."""
    what = _NO_FILES.get(header.kind)
    if what is not None and not header.size:
        raise UnusableError("not a plain file", what)
    if header.kind != _REGULAR:
        what = {b"S": "a sparse file", _DIRECTORY: "a directory with data"}.get(header.kind, what)
        raise UnusableError(
            BROKEN_TAR, f"{what or f'type {header.kind!r}'} before byte {header.end}, whose end is in doubt"
        )
    for key in records:
        if key.startswith(_SPARSE_KEYS):
            raise UnusableError("not a plain file", "a sparse file")


def _checked_name(name: bytes) -> str:
    parts = name.split(b"/")
    if not name or len(name) > MAX_NAME_BYTES or b"\0" in name or not parts[0] or b".." in parts or not parts[-1]:
        raise UnusableError("unsafe name", "absolute, with `..`, empty, ending in `/`, with a NUL, or over 4,096 bytes")
    return name.decode("utf-8", "surrogateescape")


def show_name(name: bytes | str) -> str:
    """A name for a message: without control characters that a terminal would obey, and not too long."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    shown = ascii(text)[1:-1]
    return shown if len(shown) <= 120 else f"{shown[:120]}…"
