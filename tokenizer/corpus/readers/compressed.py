"""Incremental decompression: corrupt or truncated data is an error, never an early end, and decompression bombs are stopped.

    .gz   .zst   .bz2   .xz          concatenated streams in one file are read in order, as the command-line tools do

1. Each call returns at most one piece of output. zstd has no output limit, so its input is fed in small slices.
2. Each stream must be complete. Only zeros may follow the last one.
3. Output is limited relative to the input, and in total for a file.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from tokenizer.corpus.readers.parts import ReadOptions
from tokenizer.corpus.readers.rejections import BOMB, FILE_TOO_LARGE
from tokenizer.corpus.readers.tar_members import UnusableError

INPUT_BYTES = 64 << 10
PIECE_BYTES = 1 << 20
# A zstd block can expand four bytes to 128 KiB, so 1 KiB of input gives at most 32 MiB at once.
ZSTD_INPUT_BYTES = 1 << 10
# Largest accepted window: enough for `zstd --long` and `xz -9`; `zstd --ultra --long=31` would allocate 2 GiB.
MAX_WINDOW_BYTES = 1 << 27

_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class _Decompressor(NamedTuple):
    """`open` makes a decompressor; `feed` yields its output for up to `input_bytes` of input."""

    name: str
    open: Callable[[], Any]
    feed: Callable[[Any, bytes], Iterator[bytes]]
    input_bytes: int = INPUT_BYTES


def read_content(file: BinaryIO, suffix: str, options: ReadOptions) -> Iterator[bytes]:
    """Decompressed content in pieces of bounded size. `suffix` is one of CODECS.

    Raises UnusableError, after yielding all readable content, if the file is truncated or corrupt, has trailing data, or
    exceeds the limits in `options`.
    """
    codec = CODECS[suffix]
    errors = (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError, _zstd_error())
    stream: Any = codec.open()
    streams, taken, given, waiting = 1, 0, 0, False
    for data in _slices(file, codec.input_bytes):
        taken += len(data)
        while data:
            if waiting:
                data = data.lstrip(b"\0")
                if not data:
                    break
                stream, streams, waiting = codec.open(), streams + 1, False
            try:
                for piece in codec.feed(stream, data):
                    given += len(piece)
                    _check_size(taken, given, options)
                    yield piece
            except errors as error:
                after = f" in stream {streams}, or trailing data after stream {streams - 1}" if streams > 1 else ""
                raise UnusableError(f"broken {codec.name}", f"{error}{after}; {given} bytes came out before") from None
            if not stream.eof:
                break
            data, waiting = stream.unused_data, True
    if not waiting:
        raise UnusableError(
            f"truncated {codec.name}", f"its {taken} bytes end inside a stream; {given} bytes came out before"
        )


def _slices(file: BinaryIO, length: int) -> Iterator[bytes]:
    while data := file.read(INPUT_BYTES):
        for start in range(0, len(data), length):
            yield data[start : start + length]


def _check_size(taken: int, given: int, options: ReadOptions) -> None:
    if given > options.max_file_bytes:
        raise UnusableError(FILE_TOO_LARGE, f"expands to more than max_file_bytes={options.max_file_bytes}")
    if given > options.max_document_bytes and given > options.max_ratio * taken:
        raise UnusableError(BOMB, f"{taken} bytes expand to {given}, more than max_ratio={options.max_ratio} times")


def _feed_gzip(stream: Any, data: bytes) -> Iterator[bytes]:
    while True:
        piece = stream.decompress(data, PIECE_BYTES)
        yield piece
        data = stream.unconsumed_tail
        # zlib may have consumed all input and still hold output.
        if stream.eof or (not data and len(piece) < PIECE_BYTES):
            return


def _feed_stdlib(stream: Any, data: bytes) -> Iterator[bytes]:
    yield stream.decompress(data, PIECE_BYTES)
    while not (stream.eof or stream.needs_input):
        yield stream.decompress(b"", PIECE_BYTES)


def _feed_zstd(stream: Any, data: bytes) -> Iterator[bytes]:
    yield stream.decompress(data)


def _open_zstd() -> Any:
    import zstandard  # imported here: only .zst files need it

    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


CODECS = {
    "gz": _Decompressor("gzip", lambda: zlib.decompressobj(_GZIP_WINDOW), _feed_gzip),
    "zst": _Decompressor("zstd", _open_zstd, _feed_zstd, ZSTD_INPUT_BYTES),
    "bz2": _Decompressor("bzip2", bz2.BZ2Decompressor, _feed_stdlib),
    "xz": _Decompressor("xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, 2 * MAX_WINDOW_BYTES), _feed_stdlib),
}
