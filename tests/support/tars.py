"""Tars byte by byte, also such as no honest program writes."""

import gzip
import io
import json
import random
import tarfile
import zlib

import numpy as np

END = bytes(1024)
POSIX, GNU = b"ustar\x0000", b"ustar  \0"


def header(
    name: bytes,
    size: int | bytes,
    kind: bytes = b"0",
    *,
    magic: bytes = POSIX,
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One record; `size` and `checksum` may be given as they shall stand there."""
    size_field = b"%011o\0" % size if isinstance(size, int) else size
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            3 * b"0000444\0",  # mode, user, group
            size_field.ljust(12, b"\0"),
            b"00000000000\0",  # mtime
            b"        ",
            kind,
            bytes(100),
            magic,
            bytes(80),
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )
    assert len(block) == 512
    return block[:148] + (checksum or b"%06o\0 " % sum(block)) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes, data: bytes, kind: bytes = b"0", **fields: bytes) -> bytes:
    return header(name, len(data), kind, **fields) + padded(data)


def pax(kind: bytes = b"x", **records: str | bytes) -> bytes:
    """An extended header; a double underscore in a key stands for a dot."""
    return member(
        b"PaxHeader", b"".join(pax_record(key.replace("__", "."), value) for key, value in records.items()), kind
    )


def pax_record(key: str, value: str | bytes) -> bytes:
    body = b" " + key.encode() + b"=" + (value if isinstance(value, bytes) else value.encode()) + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def npy(ids: object, dtype: str = "<u2") -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(ids, dtype), allow_pickle=False)
    return file.getvalue()


def listing(ids: list[int]) -> bytes:
    return json.dumps(ids).encode()


def files_by_tarfile(data: bytes) -> list[tuple[str, bytes]]:
    """Plain files as Python's own reader sees them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(entry.name, tar.extractfile(entry).read()) for entry in tar if entry.isreg()]  # type: ignore[union-attr]


def ids_by_other_readers(name: str, data: bytes) -> list[int]:
    """What NumPy, gzip and json give."""
    plain = gzip.decompress(data) if name.endswith(".gz") else data
    if ".npy" in name:
        return list(np.load(io.BytesIO(plain), allow_pickle=False).tolist())
    document = json.loads(plain)
    return list(document.get("tokens", document.get("input_ids")) if isinstance(document, dict) else document)


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Some bytes flipped, set, cut, put in, repeated, or the end cut off."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, length = draw.randrange(len(data) + 1), draw.choice((1, 2, 8, 100, 512))
        rest = data[at:]
        kind = draw.randrange(6)
        if kind == 0 and rest:
            data = data[:at] + bytes([rest[0] ^ 1 << draw.randrange(8)]) + rest[1:]
        elif kind == 1 and rest:
            data = data[:at] + bytes([draw.choice((draw.randrange(256), *b"0123456789,[]{}()' "))]) + rest[1:]
        elif kind == 2:
            data = data[:at] + rest[length:]
        elif kind == 3:
            data = data[:at] + draw.randbytes(length) + rest
        elif kind == 4:
            data = data[:at] + rest[:length] + rest
        else:
            data = data[: max(at, 1)]
    return data


def gzip_bomb() -> bytes:
    """The start of a gzip stream of 1 GiB of zeros, in 1 MB: one compressed piece, 64 times."""
    squeeze = zlib.compressobj(9, wbits=31)
    start = squeeze.compress(b"") + squeeze.flush(zlib.Z_FULL_FLUSH)
    return start + 64 * (squeeze.compress(bytes(1 << 24)) + squeeze.flush(zlib.Z_FULL_FLUSH))
