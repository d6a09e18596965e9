"""Splits a byte stream into records at a delimiter; any partition of a file into ranges gives each record exactly once.

    bytes      a a a \\n b b b b b \\n c c c \\n
    ranges     [0 ········· 7)[7 ·········· end)       b starts in the first range, which reads it to its end

A record belongs to the range that contains its first byte. The delimiter before `start` tells whether a record starts
exactly there, so reading begins one delimiter earlier.
"""

from collections.abc import Iterator

CHUNK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # before UTF-8 by many Windows programs; it says nothing, and is no part of the text


def split_records(
    chunks: Iterator[bytes], delimiter: bytes, *, start: int, stop: int | None, limit: int
) -> Iterator[tuple[int, bytes | None]]:
    """(offset, bytes) of each record that starts in [start, stop), without its delimiter; bytes are None if over `limit`.

    `chunks` are the bytes of the file from `seek_offset(start, delimiter)` on. Holds at most `limit` bytes and two chunks.
    Bytes after the last delimiter are a record too, unless there are none.
    """
    before = len(delimiter) - 1  # up to this many bytes at the end of a chunk may start a delimiter
    offset = seek_offset(start, delimiter)
    held: list[bytes] = []
    length, tail = 0, b""
    for chunk in chunks:
        pieces = (tail + chunk).split(delimiter)
        tail = pieces.pop()
        for piece in pieces:
            length += len(piece)
            if start <= offset:
                if stop is not None and offset >= stop:
                    return
                yield offset, _join(held, piece, length, limit)
            offset += length + len(delimiter)
            held, length = [], 0
        ours = start <= offset
        # Past the end of the range without an own record in progress: the current one belongs to an earlier range.
        if stop is not None and (offset if ours else offset + length) >= stop:
            return
        if len(tail) > before:
            done = len(tail) - before
            length += done
            # Bytes before the first delimiter belong to another range; a record over the limit is only measured.
            held = [*held, tail[:done]] if ours and length <= limit else []
            tail = tail[done:]
    length += len(tail)
    if length and start <= offset:
        yield offset, _join(held, tail, length, limit)


def seek_offset(start: int, delimiter: bytes) -> int:
    """File offset to read from for records that start at `start` or later: one delimiter earlier."""
    return max(0, start - len(delimiter)) if start else 0


def _join(held: list[bytes], piece: bytes, length: int, limit: int) -> bytes | None:
    if length > limit:
        return None
    return b"".join([*held, piece]) if held else piece
