"""A stream of bytes cut into records at a delimiter, so that any cuts of a file give each record once.

    bytes      a a a \\n b b b b b \\n c c c \\n
    ranges     [0 ········· 7)[7 ·········· end)       b begins in the first range, and is read by it to its end

A record belongs to the range in which its first byte lies. Whether one begins exactly at `start` is told by the
delimiter before it, so reading begins that much earlier.
"""

from collections.abc import Iterator

CHUNK_BYTES = 1 << 20


def split_records(
    chunks: Iterator[bytes], delimiter: bytes, *, start: int, stop: int | None, limit: int
) -> Iterator[tuple[int, bytes | None]]:
    """(offset, bytes) of each record that begins in [start, stop), without its delimiter; None for one over `limit` bytes.

    `chunks` are the bytes of the file from `lead(start, delimiter)` on. At most `limit` bytes and two chunks are held. What
    follows the last delimiter is a record too, unless it is empty.
    """
    before = len(delimiter) - 1  # so many bytes at the end of a chunk may be the beginning of a delimiter
    offset = lead(start, delimiter)
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
                yield offset, _joined(held, piece, length, limit)
            offset += length + len(delimiter)
            held, length = [], 0
        ours = start <= offset
        # Past the range, with no record of its own begun: the one that is being read belongs to an earlier range.
        if stop is not None and (offset if ours else offset + length) >= stop:
            return
        if len(tail) > before:
            done = len(tail) - before
            length += done
            # What lies before the first delimiter is none of ours, and what is over the limit is only measured.
            held = [*held, tail[:done]] if ours and length <= limit else []
            tail = tail[done:]
    length += len(tail)
    if length and start <= offset:
        yield offset, _joined(held, tail, length, limit)


def lead(start: int, delimiter: bytes) -> int:
    """Where reading begins for records from `start` on: one delimiter earlier."""
    return max(0, start - len(delimiter)) if start else 0


def _joined(held: list[bytes], piece: bytes, length: int, limit: int) -> bytes | None:
    if length > limit:
        return None
    return b"".join([*held, piece]) if held else piece
