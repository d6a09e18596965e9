"""Strict decoder for the ids in an untrusted tar member.

    NAME.npy      one dimension, integers of any width, byte order and sign          NAME.npy.gz
    NAME.json     a list of integers, or an object that has such a list in a field   NAME.json.gz

No pickle, no `eval`; each stage checks a limit before it allocates, and trailing data is an error.
"""

import json
import re
import zlib
from typing import Any

import numpy as np

from tokenizer.corpus.readers.tar_members import MAX_MEMBER_BYTES, UnusableError, escape_name

SUFFIXES = (".npy", ".npy.gz", ".json", ".json.gz")
FIELDS = ("tokens", "input_ids")  # default fields; exactly one must be present
# A parsed list of integers takes about 15 times its size in memory, hostile nesting up to 45 times: 0.7 GiB.
MAX_JSON_BYTES = 16 << 20
MAX_NPY_HEADER = 1024
MAX_IDS = 1 << 24

_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_NPY_MAGIC = b"\x93NUMPY"
_NPY_ITEM = re.compile(r"\s*'(\w+)'\s*:\s*('[^']{1,16}'|True|False|\([\d, ]{0,64}\))\s*(?:,|(?=\}))")
_DTYPE = re.compile(r"[<>|=]?[iu][1248]")


def decode_ids(name: str, data: bytes, field: str | None = None) -> np.ndarray:
    """The integers [N] of a member in their stored type (int64 for JSON).

    `field` names the list in a JSON object (default: the one of FIELDS that is present). Raises UnusableError.
    """
    stem = name.removesuffix(".gz")
    if not stem.endswith((".npy", ".json")):
        raise UnusableError("unknown format", f"its name ends in none of {', '.join(SUFFIXES)}")
    limit = MAX_JSON_BYTES if stem.endswith(".json") else MAX_MEMBER_BYTES
    if stem != name:
        data = _gunzip(data, limit)
    elif len(data) > limit:
        raise UnusableError("too large", f"{len(data)} bytes, over {limit}")
    ids = _decode_json(data, field) if stem.endswith(".json") else decode_npy(data)
    if len(ids) > MAX_IDS:
        raise UnusableError("too large", f"{len(ids)} ids, over {MAX_IDS}")
    return ids


def _gunzip(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(_GZIP_WINDOW)  # checks the trailing CRC-32 and size
    try:
        plain = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise UnusableError("broken gzip", str(error)) from None
    if len(plain) > limit:
        raise UnusableError("too large", f"{len(data)} bytes of gzip expand to more than {limit}")
    if not stream.eof:
        raise UnusableError("broken gzip", "truncated")
    if stream.unused_data:
        raise UnusableError("broken gzip", f"{len(stream.unused_data)} bytes follow its end")
    return plain


def decode_npy(data: bytes) -> np.ndarray:
    """The integers [N] of an npy file of version 1 to 3, in their stored type. Raises UnusableError.

    Format: `numpy.lib.format`. NumPy's own reader parses the header as a Python literal and allocates what it claims.
    """
    version, start = data[6:8], 10 if data[6:7] == b"\1" else 12
    if not data.startswith(_NPY_MAGIC) or version not in (b"\1\0", b"\2\0", b"\3\0") or len(data) < start:
        raise UnusableError("broken npy", "does not begin as an npy file of version 1 to 3")
    length = int.from_bytes(data[8:start], "little")
    if length > MAX_NPY_HEADER or start + length > len(data):
        raise UnusableError("broken npy", f"a header of {length} bytes, over {min(MAX_NPY_HEADER, len(data) - start)}")
    descr, shape = _npy_header(data[start : start + length].decode("latin1"))
    if not _DTYPE.fullmatch(descr):
        raise UnusableError("not integers", f"dtype {escape_name(descr)}")
    if not re.fullmatch(r"\( *\d+ *, *\)", shape):
        raise UnusableError("not one-dimensional", f"shape {shape}")
    dtype, found = np.dtype(descr), len(data) - start - length
    if int(shape.strip("(), ")) * dtype.itemsize != found:
        raise UnusableError("broken npy", f"{found} bytes of data, which is not shape {shape} of {descr}")
    return np.frombuffer(data, dtype, offset=start + length)


def _npy_header(text: str) -> tuple[str, str]:
    """dtype and shape as written; for one dimension, C and Fortran order are the same."""
    items: dict[str, str] = {}
    position, end = 1, len(text.rstrip(" \n")) - 1
    while text.startswith("{") and (item := _NPY_ITEM.match(text, position, end + 1)):
        if item[1] in items:
            break
        items[item[1]] = item[2]
        position = item.end()
    complete = len(items) == 3 and not text[position:end].strip() and text[end : end + 1] == "}"
    if not complete or items.get("fortran_order") not in ("True", "False") or not items.keys() >= {"descr", "shape"}:
        raise UnusableError("broken npy", f"unreadable header: {escape_name(text.strip())}")
    return items["descr"].strip("'"), items["shape"]


def _decode_json(data: bytes, field: str | None) -> np.ndarray:
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UnusableError("broken JSON", escape_name(str(error))) from None
    if isinstance(document, dict):
        document = _field_of(document, field)
    if not isinstance(document, list):
        raise UnusableError("no list of integers", f"found {type(document).__name__}")
    wrong = set(map(type, document)) - {int}
    if wrong:
        raise UnusableError(
            "no list of integers", f"the list holds {', '.join(sorted(kind.__name__ for kind in wrong))}"
        )
    try:
        return np.array(document, np.int64)
    except OverflowError:
        raise UnusableError("id outside the vocabulary", "an integer of more than 64 bits") from None


def _field_of(document: dict[str, Any], field: str | None) -> Any:
    found = [name for name in ((field,) if field else FIELDS) if name in document]
    if len(found) != 1:
        rule = f"no field {field!r}" if field else f"{'both' if found else 'none'} of {' and '.join(map(repr, FIELDS))}"
        names = escape_name(", ".join(list(document)[:10]))
        raise UnusableError("no token field", f"{rule} among {names}: name it with --field")
    return document[found[0]]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name is given twice in one object")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")
